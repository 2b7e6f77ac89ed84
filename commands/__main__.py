"""The entry point of the command line. It hands `make_services` to the commands."""

from app import make_services
from commands.cache_group import cache_group, keys
from commands.check import check
from commands.console import Commands
from commands.links import links, warm
from commands.sign import sign

cli = Commands(
    commands=[sign, warm, links, cache_group, keys, check],
    help="""Commands of Prompt Image Proxy, for its administrator.

    Run them in the folder of the service and as its user: they read the same settings.
    """,
)

if __name__ == "__main__":
    cli(obj=make_services)
