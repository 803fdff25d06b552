"""Tasks, one file each. `TASKS` is the table: name -> factory; the contract tests cover every entry."""

from tasks.cipher_vault import cipher_vault
from tasks.injury import injury

TASKS = {"injury": injury, "cipher_vault": cipher_vault}
