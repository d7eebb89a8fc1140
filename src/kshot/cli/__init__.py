"""The command line: parse, call, turn errors into one line and an exit code.

Clients of servers read which proxy to ask when they are made, so that is settled before any command is imported.
"""

from kshot.servers import keep_own_addresses_off_proxies

keep_own_addresses_off_proxies()
