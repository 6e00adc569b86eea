"""A client for tests: slixmpp, told what to do by lines of JSON.

Usage: client.py JID PASSWORD HOST PORT

In:  {"do": "join", "room": …, "nick": …}, {"do": "raw", "xml": …},
     {"do": "say", "to": …, "type": …, "body": …, "id": …}, {"do": "ping", "room": …, "nick": …}
Out: {"event": "online"}, {"event": "joined", "occupants": […], "history": […], "subject": …},
     {"event": "failed", "error": …}, {"event": "pong"}, {"event": "stanza", "xml": …}
"""
import asyncio
import json
import sys

import slixmpp
from slixmpp.exceptions import IqError, IqTimeout, PresenceError
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath


def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


class Client(slixmpp.ClientXMPP):
    def __init__(self, jid, password):
        super().__init__(jid, password)
        for plugin in ("xep_0030", "xep_0045", "xep_0199", "xep_0203"):
            self.register_plugin(plugin)
        self["feature_mechanisms"].unencrypted_plain = True
        self.add_event_handler("session_start", self.start)
        self.add_event_handler("failed_auth", lambda _: tell("failed", error="auth"))
        for kind in ("message", "presence", "iq"):
            self.register_handler(Callback(
                "tell " + kind, MatchXPath("{jabber:client}" + kind),
                lambda s: tell("stanza", xml=ET.tostring(s.xml, encoding="unicode"))))

    async def start(self, _):
        self.send_presence()
        tell("online")
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            await self.do(json.loads(line))
        self.disconnect()

    async def do(self, c):
        try:
            if c["do"] == "join":
                _, subject, occupants, history = await self["xep_0045"].join_muc_wait(c["room"], c["nick"], maxstanzas=c.get("history", 20), timeout=15)
                tell("joined", subject=subject["subject"],
                     occupants=[str(p["from"].resource) for p in occupants],
                     history=[m["body"] for m in history])
            elif c["do"] == "say":
                m = self.make_message(mto=c["to"], mbody=c["body"], mtype=c["type"])
                m["id"] = c["id"]
                m.send()
            elif c["do"] == "ping":
                await self["xep_0199"].send_ping(c["room"] + "/" + c["nick"], timeout=10)
                tell("pong")
            else:
                self.send_raw(c["xml"])
        except (IqError, PresenceError) as e:
            tell("failed", error=e.condition)
        except (IqTimeout, asyncio.TimeoutError):
            tell("failed", error="timeout")


jid, password, host, port = sys.argv[1:]
client = Client(jid, password)
client.connect((host, int(port)), use_ssl=False, force_starttls=False, disable_starttls=True)
client.process(forever=False)
