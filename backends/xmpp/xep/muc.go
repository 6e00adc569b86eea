package xep

import "slices"

// Affiliations and roles of XEP-0045.
const (
	Owner    = "owner"
	Admin    = "admin"
	MemberOf = "member"
	None     = "none"
	Outcast  = "outcast"

	Moderator   = "moderator"
	Participant = "participant"
	Visitor     = "visitor"
)

// Status codes of XEP-0045.
const (
	StatusNonAnonymous = "100"
	StatusSelf         = "110"
	StatusCreated      = "201"
	StatusNickAssigned = "210"
	StatusBanned       = "301"
	StatusNickChanged  = "303"
	StatusKicked       = "307"
	StatusTechnical    = "333"
)

// MUCUser is the extension by which a MUC describes an occupant.
type MUCUser struct {
	Affiliation, Role string
	JID, Nick         string
	Actor, Reason     string
	Codes             []string
}

// Has reports whether a status code is set.
func (u MUCUser) Has(code string) bool { return slices.Contains(u.Codes, code) }

// MUCUserOf reads it from a presence; the zero value stands for none.
func MUCUserOf(p *Element) MUCUser {
	x := p.Child(NSMUCUser, "x")
	item := x.Child(NSMUCUser, "item")
	u := MUCUser{
		Affiliation: item.Attr("affiliation"), Role: item.Attr("role"),
		JID: item.Attr("jid"), Nick: item.Attr("nick"),
		Actor: item.Child(NSMUCUser, "actor").Attr("nick"), Reason: item.Child(NSMUCUser, "reason").Text(),
	}
	for _, c := range x.Children() {
		if c.Is(NSMUCUser, "status") {
			u.Codes = append(u.Codes, c.Attr("code"))
		}
	}
	return u
}

// Element writes u.
func (u MUCUser) Element() *Element {
	item := New(NSMUCUser, "item", "affiliation", u.Affiliation, "role", u.Role, "jid", u.JID, "nick", u.Nick)
	if u.Actor != "" {
		item.Add(New(NSMUCUser, "actor", "nick", u.Actor))
	}
	if u.Reason != "" {
		item.Add(New(NSMUCUser, "reason").AddText(u.Reason))
	}
	x := New(NSMUCUser, "x").Add(item)
	for _, code := range u.Codes {
		x.Add(New(NSMUCUser, "status", "code", code))
	}
	return x
}
