"""Tasks, one file each. `TASKS` is the table: name -> factory; the contract tests cover every entry."""

from tasks.brackets import brackets
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from tasks.injury_two import injury_two
from tasks.modular import modular
from tasks.password import password

TASKS = {
    "injury": injury,
    "injury_two": injury_two,
    "password": password,
    "brackets": brackets,
    "modular": modular,
    "cipher_vault": cipher_vault,
}
