package puppeting

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// networkName is what a network may be called: its ghosts are @<name>_….
var networkName = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// maxEscaped is how long an escaped identifier may get before it is replaced by a hash.
const maxEscaped = 160

// ghostLocalpart is the localpart of the ghost of a remote user.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#mapping-from-other-character-sets
func ghostLocalpart(network string, id backends.UserID) string {
	return network + "_" + shorten(escapeUser(string(id)), string(id))
}

// shorten replaces what is too long for an identifier by a hash, marked "=h",
// which no escaping yields.
func shorten(escaped, original string) string {
	if len(escaped) <= maxEscaped {
		return escaped
	}
	sum := sha256.Sum256([]byte(original))
	return "=h" + hex.EncodeToString(sum[:16])
}

func escapeUser(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '/':
			b.WriteByte(c)
		case c >= 'A' && c <= 'Z':
			b.WriteByte('_')
			b.WriteByte(c + 'a' - 'A')
		case c == '_':
			b.WriteString("__")
		default:
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	return b.String()
}

// unescapeUser undoes escapeUser; ok is false for what that does not yield.
func unescapeUser(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '_' && i+1 < len(s):
			i++
			b.WriteByte(strings.ToUpper(s[i : i+1])[0])
		case c == '=' && i+2 < len(s):
			v, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return "", false
			}
			b.WriteByte(v[0])
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	out := b.String()
	return out, out != "" && escapeUser(out) == s
}

// aliasLocalpart is the localpart of the alias of a chat. More than in user IDs is
// allowed, so that people can type it: #irc_#go:server.
func aliasLocalpart(network string, chat backends.ChatID) string {
	return network + "_" + shorten(escapeAlias(string(chat)), string(chat))
}

func escapeAlias(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r <= ' ' || r == ':' || r == '=' || r == 0x7f || r == '\uFFFD' {
			fmt.Fprintf(&b, "=%02x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// unescapeAlias reads what people may have typed: sequences that escapeAlias would
// not make are taken as they are.
func unescapeAlias(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '=' && i+2 < len(s) {
			if v, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.WriteByte(v[0])
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// hashID makes an identifier of its parts: the same parts, the same identifier.
func hashID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:20]))
}

// BotLocalpart is the localpart of the bridge's bot.
const BotLocalpart = "gjallar"

// NewRegistration makes the registration of a bridge of these networks, with new
// tokens. With accounts, which gateways need that let in users of the homeserver,
// it asks for the homeserver's users too, not exclusively.
func NewRegistration(networks []string, serverName, url string, accounts bool) *appservice.Registration {
	r := appservice.NewRegistration("gjallar", url, BotLocalpart)
	for _, n := range networks {
		r.Namespaces.Users = append(r.Namespaces.Users, appservice.UserNamespace(n+"_", serverName))
		r.Namespaces.Aliases = append(r.Namespaces.Aliases, appservice.AliasNamespace(n+"_", serverName))
	}
	if accounts {
		all := appservice.UserNamespace("", serverName)
		all.Exclusive = false
		r.Namespaces.Users = append(r.Namespaces.Users, all)
	}
	r.Protocols = networks
	return r
}

// isLocal reports whether a user is of our homeserver.
func (b *Bridge) isLocal(u matrix.UserID) bool { return string(u.Server()) == b.o.ServerName }
