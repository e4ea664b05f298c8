#!/bin/sh
# Chromium for the tests in a browser, where it is not installed, from Debian's packages.
set -eu

command -v chromium > /dev/null && exit 0

if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        chromium fonts-dejavu-core
    exit 0
fi
echo "Not installed: chromium. The tests that need it are skipped." \
    "On Debian: sudo apt-get install chromium" >&2
[ "${CI:-}" != true ]
