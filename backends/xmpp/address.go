package xmpp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
)

// resource of the addresses of the host's users.
const resource = "gjallar"

// escapeLocal writes s so that it can be part of a localpart: what XEP-0106 lists
// in its way, and capitals, which a localpart does not keep, in the same.
func escapeLocal(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(" \"&'/:<>@\\", c) >= 0 || c >= 'A' && c <= 'Z' || c < 0x20 {
			fmt.Fprintf(&b, `\%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unescapeLocal undoes escapeLocal.
func unescapeLocal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+2 < len(s) {
			if c, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.Write(c)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ghostLocal is the localpart of a user of the host.
func ghostLocal(u backends.User) string {
	if u.Username == "" || u.Domain == "" {
		return escapeLocal(strings.TrimPrefix(string(u.Account), "@"))
	}
	return escapeLocal(u.Username + "_" + u.Domain)
}

// splitGhost takes a localpart apart. Domains have no "_", so the last one is ours.
func splitGhost(local string) (username, domain string, ok bool) {
	local = unescapeLocal(local)
	i := strings.LastIndexByte(local, '_')
	if i < 1 || i+1 == len(local) {
		return "", "", false
	}
	return local[:i], local[i+1:], true
}

// roomOf reads the localpart of a room of the gateway: alias, alias%server or
// #alias#server, the form of matrix-bifrost.
func roomOf(local string) (backends.RoomName, bool) {
	local = unescapeLocal(local)
	var r backends.RoomName
	if rest, ok := strings.CutPrefix(local, "#"); ok {
		r.Alias, r.Server = rest, ""
		if i := strings.LastIndexByte(rest, '#'); i >= 0 {
			r.Alias, r.Server = rest[:i], rest[i+1:]
		}
	} else {
		r.Alias = local
		if i := strings.LastIndexByte(local, '%'); i >= 0 {
			r.Alias, r.Server = local[:i], local[i+1:]
		}
	}
	return r, r.Alias != ""
}

// roomJID is the address under which we name a room ourselves.
func (n *network) roomJID(r backends.RoomName) (jid.JID, error) {
	local := escapeLocal(r.Alias)
	if r.Server != "" {
		local += "%" + escapeLocal(r.Server)
	}
	return jid.New(local, n.domain.Domainpart(), "")
}

// nickFrom makes a nick of a display name.
func nickFrom(names ...string) string {
	for _, name := range names {
		name = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || r == unicode.ReplacementChar {
				return -1
			}
			return r
		}, name)
		if r := []rune(name); len(r) > 64 {
			name = string(r[:64])
		}
		name = strings.TrimSpace(name)
		if j, err := jid.New("", "x.test", name); err == nil && j.Resourcepart() != "" {
			return j.Resourcepart()
		}
	}
	return "user"
}

// candidates are the nicks to try for a user, best first.
func candidates(u backends.User) []string {
	nick := nickFrom(u.Name, u.Username)
	list := []string{nick, nick + "_"}
	if u.Domain != "" {
		list = append(list, nickFrom(nick+" ("+u.Domain+")"))
	}
	for i := 2; i < 6; i++ {
		list = append(list, fmt.Sprintf("%s_%d", nick, i))
	}
	return list
}

// mac is a keyed hash, in characters that are safe everywhere.
func mac(key []byte, parts ...string) string {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:15]))
}

// stanzaID is the ID of the part'th stanza of a command: the same whenever it is
// sent, so that a repetition can be recognised.
func (n *network) stanzaID(cmd string, part int) string {
	id := mac(n.key, "stanza", cmd, fmt.Sprint(part))
	return id + mac(n.key, "ours", id)[:8]
}

// ourID reports whether stanzaID made id.
func (n *network) ourID(id string) bool {
	return len(id) == 32 && hmac.Equal([]byte(mac(n.key, "ours", id[:24])[:8]), []byte(id[24:]))
}
