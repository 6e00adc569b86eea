package xmpp

import (
	"context"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
	"mellium.im/xmpp/jid"
)

type room struct{}

func (n *network) restoreRooms(ctx context.Context) error                           { return nil }
func (n *network) pingOccupants()                                                   {}
func (n *network) forRoom(e *xep.Element, from, to jid.JID) bool                    { return false }
func (n *network) handleRoom(ctx context.Context, e *xep.Element, from, to jid.JID) {}
func (n *network) sendRoom(ctx context.Context, addr jid.JID, cmd *backends.Command, reply func(backends.Result)) {
}
func (n *network) handleIQ(ctx context.Context, e *xep.Element, from, to jid.JID) {
	if e.Attr("type") == "get" || e.Attr("type") == "set" {
		if e.Child(xep.NSPing, "ping") != nil {
			n.send(ctx, xep.ResultOf(e))
			return
		}
		n.send(ctx, xep.ErrorTo(e, &xep.Error{Type: "cancel", Condition: "service-unavailable"}))
	}
}
func stanzaError(r *backends.Refusal) *xep.Error {
	return &xep.Error{Type: "cancel", Condition: "not-allowed", Text: r.Message}
}
