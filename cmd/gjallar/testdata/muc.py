"""Someone in a MUC with slixmpp: what they read on standard input they say, what
others say they print, one JSON string a line. "[joined]" is printed once they are in.

Usage: muc.py JID PASSWORD HOST PORT MUC
"""
import asyncio
import json
import sys

import slixmpp

jid, password, host, port, muc = sys.argv[1:]
NICK = "carol"


class Client(slixmpp.ClientXMPP):
    def __init__(self):
        super().__init__(jid, password)
        self.register_plugin("xep_0045")
        self["feature_mechanisms"].unencrypted_plain = True
        self.add_event_handler("session_start", self.start)
        self.add_event_handler("groupchat_message", self.heard)

    def heard(self, m):
        if m["mucnick"] != NICK:
            print(json.dumps(m["body"]), flush=True)

    async def start(self, _):
        self.send_presence()
        await self["xep_0045"].join_muc_wait(muc, NICK, maxstanzas=0, timeout=20)
        print(json.dumps("[joined]"), flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self.send_message(mto=muc, mbody=line.decode().strip(), mtype="groupchat")
        self.disconnect()


client = Client()
client.connect((host, int(port)), use_ssl=False, force_starttls=False, disable_starttls=True)
client.process(forever=False)
