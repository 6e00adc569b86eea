package irc

import (
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"github.com/gjallar-im/gjallar/backends"
)

// maxNick is the nick length we try for before the server says its NICKLEN.
const maxNick = 30

// sanitiseNick makes a nick of letters, digits and []\`_^{|}- out of a name: marks
// fall off letters, other characters are dropped, spaces become "_". The result
// has at most limit bytes; it is "" if nothing is left.
func sanitiseNick(name string, limit int) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(strings.TrimSpace(name)) {
		switch {
		case unicode.IsSpace(r):
			r = '_'
		case !nickRune(r):
			continue
		}
		b.WriteRune(r)
	}
	nick := b.String()
	if nick != "" && strings.IndexByte("0123456789-", nick[0]) >= 0 {
		nick = "_" + nick
	}
	return nick[:min(len(nick), limit)]
}

func nickRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
		r < unicode.MaxASCII && strings.ContainsRune("[]\\`_^{|}-", r)
}

// sanitiseUser makes a user name (ident): letters and digits, at most ten.
func sanitiseUser(name string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(strings.ToLower(name)) {
		if ('a' <= r && r <= 'z' || '0' <= r && r <= '9') && b.Len() < 10 {
			b.WriteRune(r)
		}
	}
	if b.Len() == 0 {
		return "user"
	}
	return b.String()
}

// expand fills in a template of nicks or real names.
func expand(template string, u backends.User) string {
	name := u.Name
	if name == "" {
		name = u.Username
	}
	return strings.NewReplacer("{name}", name, "{username}", u.Username, "{domain}", u.Domain).Replace(template)
}

// nickFor returns the nick that a user of the host should have.
func nickFor(template string, u backends.User, limit int) string {
	if nick := sanitiseNick(expand(template, u), limit); nick != "" && (u.Name == "" || sanitiseNick(u.Name, limit) != "") {
		return nick
	}
	u.Name = "" // nothing of the name can be written: the user name stands in
	if nick := sanitiseNick(expand(template, u), limit); nick != "" {
		return nick
	}
	return "user"
}

// maxNickTries is after how many clashes a connection gives up.
const maxNickTries = 30

// nickTry returns what to try after so many clashes: the nick, nick_, then nick1,
// nick2 …, cut so that the suffix fits.
func nickTry(nick string, clashes, limit int) string {
	suffix := ""
	switch {
	case clashes == 1:
		suffix = "_"
	case clashes > 1:
		suffix = strconv.Itoa(clashes - 1)
	}
	return nick[:max(1, min(len(nick), limit-len(suffix)))] + suffix
}

// plainName is a name fit for "<name> text" in one line.
func plainName(u backends.User) string {
	name := u.Name
	if name == "" {
		name = u.Username
	}
	if name == "" {
		name = string(u.ID)
	}
	name = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, name)
	if r := []rune(name); len(r) > 40 {
		name = string(r[:40]) + "…"
	}
	return name
}
