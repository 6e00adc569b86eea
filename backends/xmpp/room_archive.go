package xmpp

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// Bounds of a query of a room's archive.
const (
	archivePage   = 100 // most messages of one answer
	archiveWindow = 200 // asked of the host at once
	maxWindows    = 20  // how often it is asked for one query
)

// archiveQuery is a request for a page of the past (XEP-0313 §4, XEP-0059).
type archiveQuery struct {
	iq            *xep.Element
	queryID       string
	start, end    time.Time
	max           int
	before, after string
	backwards     bool
}

func archiveQueryOf(iq, query *xep.Element) archiveQuery {
	set := query.Child(xep.NSRSM, "set")
	q := archiveQuery{iq: iq, queryID: query.Attr("queryid"), max: archivePage, after: set.Child(xep.NSRSM, "after").Text()}
	if v, err := strconv.Atoi(set.Child(xep.NSRSM, "max").Text()); err == nil && v >= 0 {
		q.max = min(v, archivePage)
	}
	if before := set.Child(xep.NSRSM, "before"); before != nil {
		q.backwards, q.before = true, before.Text()
	}
	for _, f := range query.Child(xep.NSData, "x").Children() {
		at, err := time.Parse(time.RFC3339, f.Child(xep.NSData, "value").Text())
		switch {
		case err != nil:
		case f.Attr("var") == "start":
			q.start = at
		case f.Attr("var") == "end":
			q.end = at
		}
	}
	return q
}

// handleArchive answers a query of the archive. The host is asked outside of the
// room's lane.
func (r *room) handleArchive(ctx context.Context, iq, query *xep.Element, d *device) {
	if iq.Attr("type") == "get" {
		r.n.send(ctx, xep.ResultOf(iq, archiveForm()))
		return
	}
	q := archiveQueryOf(iq, query)
	user := d.of.user
	r.n.enters.Do(ctx, string(r.id)+" archive "+memberKey(user), func() {
		page, complete, err := r.past(r.n.ctx, user, q)
		r.do(r.n.ctx, func() {
			if err != nil {
				r.n.refuse(r.n.ctx, iq, r.n.hostError(err))
				return
			}
			r.sendPage(r.n.ctx, d, q, page, complete)
		})
	})
}

// archiveForm says by what one may query (XEP-0313 §4.1.5).
func archiveForm() *xep.Element {
	form := xep.New(xep.NSData, "x", "type", "form").Add(
		xep.New(xep.NSData, "field", "type", "hidden", "var", "FORM_TYPE").Add(xep.New(xep.NSData, "value").AddText(xep.NSMAM)))
	for _, name := range []string{"start", "end"} {
		form.Add(xep.New(xep.NSData, "field", "type", "text-single", "var", name))
	}
	return xep.New(xep.NSMAM, "query").Add(form)
}

// past returns the messages of a page, oldest first. The host gives the past
// backwards only, so a page that lies far back costs several calls; the error is a
// Refusal, not-found, if it refers to a message that is not there.
func (r *room) past(ctx context.Context, user backends.User, q archiveQuery) (page []backends.Command, complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	var all []backends.Command
	seen := map[string]bool{} // by command ID
	whole := false
	before := q.end
	for range maxWindows {
		window, err := r.n.host.Rooms().History(ctx, r.id, user, before, archiveWindow)
		if err != nil {
			return nil, false, err
		}
		whole = len(window) < archiveWindow
		fresh := slices.DeleteFunc(slices.Clone(window), func(c backends.Command) bool { return seen[c.ID] })
		for _, c := range fresh {
			seen[c.ID] = true
		}
		all = append(fresh, all...)
		if whole || len(fresh) == 0 || r.enough(all, q) {
			break
		}
		before = window[0].Time.Add(time.Millisecond) // several may have that time
	}
	return r.cut(all, q, whole)
}

// enough reports whether a page can be cut out of what was fetched.
func (r *room) enough(all []backends.Command, q archiveQuery) bool {
	switch {
	case q.after != "":
		return r.indexOf(all, q.after) >= 0
	case q.before != "":
		return r.indexOf(all, q.before) >= q.max
	case q.backwards:
		return len(all) >= q.max
	}
	return !q.start.IsZero() && all[0].Time.Before(q.start)
}

func (r *room) indexOf(all []backends.Command, sid string) int {
	return slices.IndexFunc(all, func(c backends.Command) bool {
		return slices.Contains(r.n.roomIDs(&c), backends.MessageID(sid))
	})
}

// cut takes the page out of all that was fetched.
func (r *room) cut(all []backends.Command, q archiveQuery, whole bool) (page []backends.Command, complete bool, err error) {
	for _, sid := range []string{q.after, q.before} {
		if sid != "" && r.indexOf(all, sid) < 0 {
			return nil, false, &backends.Refusal{Code: backends.RefusedNotFound, Message: "There is no such message."}
		}
	}
	if q.after != "" {
		all = all[r.indexOf(all, q.after)+1:]
	}
	if q.before != "" {
		all = all[:r.indexOf(all, q.before)]
	}
	if from := slices.IndexFunc(all, func(c backends.Command) bool { return !c.Time.Before(q.start) }); from > 0 {
		all, whole = all[from:], true
	} else if from < 0 {
		all = nil
	}
	if q.backwards {
		return all[max(0, len(all)-q.max):], whole && len(all) <= q.max, nil
	}
	return all[:min(q.max, len(all))], len(all) <= q.max, nil
}

// sendPage sends the messages of a page and the answer, in the room's lane.
func (r *room) sendPage(ctx context.Context, d *device, q archiveQuery, page []backends.Command, complete bool) {
	var first, last string
	for _, c := range page {
		for _, s := range r.render(&c) {
			if first == "" {
				first = s.sid
			}
			last = s.sid
			r.sendArchived(ctx, d, q.queryID, s, c.Time)
		}
	}
	set := xep.New(xep.NSRSM, "set")
	if first != "" {
		set.Add(xep.New(xep.NSRSM, "first").AddText(first), xep.New(xep.NSRSM, "last").AddText(last))
	}
	fin := xep.New(xep.NSMAM, "fin").Add(set)
	if complete {
		fin.Set("complete", "true")
	}
	r.n.send(ctx, xep.ResultOf(q.iq, fin))
}

func (r *room) sendArchived(ctx context.Context, d *device, queryID string, s shown, at time.Time) {
	from := d.via
	if s.nick != "" {
		from += "/" + s.nick
	}
	m := xep.New(xep.NSComponent, "message", "from", from, "type", "groupchat", "id", s.id).Add(s.payload...)
	if s.key != "" {
		m.Add(r.occupantID(s.key))
	}
	forwarded := xep.New(xep.NSForward, "forwarded").Add(xep.New(xep.NSDelay, "delay", "stamp", xep.Stamp(at)), m.InClient())
	result := xep.New(xep.NSMAM, "result", "queryid", queryID, "id", s.sid).Add(forwarded)
	r.n.send(ctx, xep.New(xep.NSComponent, "message", "from", d.via, "to", d.full.String()).Add(result))
}
