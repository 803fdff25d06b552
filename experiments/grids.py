"""What the arms of several questions share: names by finds, and evaluation without attacks where all is counted."""

import dataclasses

from experiments.arm import Arm, is_counted


def unattacked(arms: dict[str, Arm]) -> dict[str, Arm]:
    """The arms, evaluated without attacks where every prompt is judged: no attack finds more, and it takes minutes."""
    return {name: dataclasses.replace(arm, attackers=0) if is_counted(arm.plain) else arm for name, arm in arms.items()}


def with_finds(arm: str, finds: int, usual: int) -> str:
    """What an arm is called whose number of finds is not the usual one."""
    return arm if finds == usual else f"{arm}, {finds} finds"
