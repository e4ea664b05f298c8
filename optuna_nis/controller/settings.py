"""How a policy learns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Real

from optuna import Study

from optuna_nis.study.moments import noted_settings

# Beyond these, nothing is left of the digits of what is multiplied or divided by it.
_LEAST, _MOST = 1e-6, 1e300


@dataclass(frozen=True)
class PolicySettings:
    """How fast a :class:`Policy` learns and how long it explores.

    Rewards are divided by their running standard deviation, so none of these depends on the scale
    of the rewards.

    Args:
        learning_rate: Step of the logits along the critic's advantages, for a single trial; for a
            group it is multiplied by the square root of its size.
        temperature: Weight of the entropy bonus, for a single trial; for a group it is multiplied
            by the square root of its size. It is divided by the number of parameters plus one,
            which keeps the total cost of exploring about the same in spaces of any size.
        optimism: Standard errors of the critic added to the advantage of an option, which favours
            options seen seldom.
        sampled_learning_rate: The same along the sampled policy gradient, which learns what the
            critic cannot express: interactions, and what a choice leaves of a budget.
        ridge: Strength with which the critic pulls the advantage of an option to 0, in trials.
        max_importance: Upper bound on the importance weight of a trial that was drawn from an
            older policy.

    Raises:
        ValueError: If a setting is negative or no finite number, or one that must be positive is
            below 1e-6.

    Example:
        >>> PolicySettings(learning_rate=0.5).temperature
        1.0
    """

    learning_rate: float = 1.0
    temperature: float = 1.0
    optimism: float = 0.5
    sampled_learning_rate: float = 0.05
    ridge: float = 2.0
    max_importance: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0 <= value < _MOST:
                raise ValueError(
                    f"`{field.name}` must be a finite number and not negative, got {value!r}."
                )
            # Whatever its type, it is kept in the study.
            object.__setattr__(self, field.name, float(value))
        for name in ("temperature", "ridge"):
            if getattr(self, name) < _LEAST:
                raise ValueError(f"`{name}` must be at least {_LEAST}, got {getattr(self, name)}.")

    def changed(self) -> dict[str, float]:
        """The settings that are not the default, by name."""
        default = asdict(PolicySettings())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


def settings_of(study: Study) -> PolicySettings:
    """How the policy of a study learns, as its sampler has noted, by default if it has not.

    Raises:
        ValueError: If what the study holds in its place are no settings.
    """
    noted = noted_settings(study)
    unknown = noted.keys() - {field.name for field in fields(PolicySettings)}
    if unknown:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with settings that this version does not "
            f"know, {sorted(unknown)}."
        )
    try:
        return PolicySettings(**noted)
    except ValueError as error:
        raise ValueError(
            f"The settings of the policy that {study.study_name!r} holds are none: {error}"
        ) from error
