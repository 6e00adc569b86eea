package xmpp

import (
	"context"
	"strings"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

var (
	_ backends.Resolver  = (*network)(nil)
	_ backends.Directory = (*network)(nil)
)

// parseQuery reads an address that somebody typed, a link included.
func parseQuery(query string) (jid.JID, error) {
	query, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(query), "xmpp:"), "?")
	j, err := jid.Parse(query)
	if err != nil {
		return j, &backends.Refusal{Code: backends.RefusedInvalid, Message: "“" + query + "” is not an XMPP address"}
	}
	return j.Bare(), nil
}

// ResolveChat implements backends.Resolver: it asks the address what it is.
func (n *network) ResolveChat(ctx context.Context, query string) (*backends.ChatInfo, error) {
	addr, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	info, err := n.disco(ctx, addr, xep.NSDiscoInfo)
	if err != nil {
		return nil, refusalOf(err)
	}
	identity := info.Child(xep.NSDiscoInfo, "identity")
	if identity.Attr("category") != "conference" || addr.Localpart() == "" {
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: addr.String() + " is not a room"}
	}
	chat := &backends.ChatInfo{Chat: backends.ChatKey{Chat: backends.ChatID(addr.String())}}
	if name := identity.Attr("name"); name != "" {
		chat.Name = &name
	}
	return chat, nil
}

// ResolveUser implements backends.Resolver. XMPP does not say whether an address
// exists, so any is taken.
func (n *network) ResolveUser(ctx context.Context, query string) (*backends.User, error) {
	addr, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	if addr.Localpart() == "" || addr.Domainpart() == n.domain.Domainpart() {
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: addr.String() + " is not a user of XMPP"}
	}
	return new(peerOf(addr, "")), nil
}

// ListChats implements backends.Directory. The query is the address of a MUC
// service.
func (n *network) ListChats(ctx context.Context, query string, limit int) ([]backends.ChatInfo, error) {
	addr, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	items, err := n.disco(ctx, addr, xep.NSDiscoItems)
	if err != nil {
		return nil, refusalOf(err)
	}
	var list []backends.ChatInfo
	for _, item := range items.Children() {
		room, err := jid.Parse(item.Attr("jid"))
		if err != nil || room.Localpart() == "" || len(list) == limit {
			continue
		}
		list = append(list, backends.ChatInfo{Chat: backends.ChatKey{Chat: backends.ChatID(room.Bare().String())}, Name: new(item.Attr("name"))})
	}
	return list, nil
}

// disco asks an address about itself (XEP-0030).
func (n *network) disco(ctx context.Context, addr jid.JID, space string) (*xep.Element, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := n.comp.Request(ctx, xep.IQ(n.bot, addr, "get").Add(xep.New(space, "query")))
	if err != nil {
		return nil, err
	}
	return answer.Child(space, "query"), nil
}
