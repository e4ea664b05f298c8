#!/bin/sh
# PostgreSQL and Redis for the tests, where they are not installed, from Debian's packages.
set -eu

missing=""
command -v initdb > /dev/null || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 ||
    missing="$missing postgresql"
command -v redis-server > /dev/null || missing="$missing redis-server"
[ -n "$missing" ] || exit 0

if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
    exit 0
fi
echo "Not installed:$missing. The tests that need them are skipped." \
    "On Debian: sudo apt-get install$missing" >&2
[ "${CI:-}" != true ]
