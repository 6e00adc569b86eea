package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

func (a *api) syncRoutes() []route {
	return []route{{"GET", "/v3/sync", user, (*api).getSync}}
}

// syncResponse: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync
type syncResponse struct {
	NextBatch   string      `json:"next_batch"`
	AccountData *dataEvents `json:"account_data,omitempty"`
	Presence    *dataEvents `json:"presence,omitempty"`
	ToDevice    *dataEvents `json:"to_device,omitempty"`
	DeviceLists *struct {
		Changed []matrix.UserID `json:"changed"`
		Left    []matrix.UserID `json:"left"`
	} `json:"device_lists,omitempty"`
	KeyCounts      map[string]int `json:"device_one_time_keys_count,omitempty"`
	UnusedFallback []string       `json:"device_unused_fallback_key_types"`
	Rooms          *syncRooms     `json:"rooms,omitempty"`
}

type syncRooms struct {
	Join   map[matrix.RoomID]*joinedRoom  `json:"join,omitempty"`
	Invite map[matrix.RoomID]*strangeRoom `json:"invite,omitempty"`
	Knock  map[matrix.RoomID]*strangeRoom `json:"knock,omitempty"`
	Leave  map[matrix.RoomID]*joinedRoom  `json:"leave,omitempty"`
}

func (s *syncRooms) empty() bool {
	return len(s.Join) == 0 && len(s.Invite) == 0 && len(s.Knock) == 0 && len(s.Leave) == 0
}

// dataEvents is a list of events that are in no room's history.
type dataEvents struct {
	Events []dataEvent `json:"events"`
}

type dataEvent struct {
	Type    string          `json:"type"`
	Sender  matrix.UserID   `json:"sender,omitempty"`
	Content json.RawMessage `json:"content"`
}

type roomEvents struct {
	Events []matrix.Event `json:"events"`
}

type timeline struct {
	Events    []matrix.Event `json:"events"`
	Limited   bool           `json:"limited"`
	PrevBatch string         `json:"prev_batch,omitempty"`
}

// joinedRoom is also the form of a room that was left.
type joinedRoom struct {
	Summary     *heroes     `json:"summary,omitempty"`
	State       *roomEvents `json:"state,omitempty"`
	StateAfter  *roomEvents `json:"state_after,omitempty"`
	Timeline    timeline    `json:"timeline"`
	Ephemeral   *dataEvents `json:"ephemeral,omitempty"`
	AccountData *dataEvents `json:"account_data,omitempty"`
	Unread      *unread     `json:"unread_notifications,omitempty"`
}

type unread struct {
	Notifications int `json:"notification_count"`
	Highlights    int `json:"highlight_count"`
}

// strangeRoom is one that the user is invited to or knocks at.
type strangeRoom struct {
	Invite *roomEvents `json:"invite_state,omitempty"`
	Knock  *roomEvents `json:"knock_state,omitempty"`
}

type heroes struct {
	Heroes  []matrix.UserID `json:"m.heroes,omitempty"`
	Joined  int             `json:"m.joined_member_count"`
	Invited int             `json:"m.invited_member_count"`
}

// maxSyncWait bounds how long a client may ask to wait.
const maxSyncWait = 10 * time.Minute

// getSync answers at once if there is something new, and otherwise waits for it.
func (a *api) getSync(r *request) (any, error) {
	s, err := a.newSync(r)
	if err != nil {
		return nil, err
	}
	wait, err := r.intQuery("timeout", 0, 0, int(maxSyncWait.Milliseconds()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(wait)*time.Millisecond)
	defer cancel()
	if r.service == nil {
		end, err := a.Presence.Begin(r.Context(), r.user, r.URL.Query().Get("set_presence"))
		defer end()
		if err != nil {
			return nil, err
		}
	}
	if s.since != nil && s.device != "" {
		if err := a.Store.DeleteToDevice(r.Context(), r.user, r.device, s.since.Pos); err != nil {
			return nil, err
		}
	}
	for {
		something, err := s.build(r.Context())
		if err != nil {
			return nil, err
		}
		if something || s.since == nil || s.full || ctx.Err() != nil {
			return s.out, nil
		}
		// What concerns nobody who is asked about is no reason to look again.
		a.Hub.Wait(ctx, r.user, s.joinedRooms, s.now)
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
	}
}

// syncer builds one response to /sync.
type syncer struct {
	api    *api
	r      *request
	filter *filter
	device matrix.DeviceID
	since  *streams.Token // nil: everything
	full   bool           // all state again
	after  bool           // state_after in place of state
	leave  bool           // rooms that were left, too

	now         streams.Token
	joinedRooms []matrix.RoomID
	out         *syncResponse
	// Users whose devices the client begins or ceases to follow.
	met, parted map[matrix.UserID]bool
}

func (a *api) newSync(r *request) (*syncer, error) {
	q := r.URL.Query()
	s := &syncer{api: a, r: r, device: r.device, full: q.Get("full_state") == "true"}
	s.after = q.Get("use_state_after") == "true" || q.Get("org.matrix.msc4222.use_state_after") == "true"
	if text := q.Get("since"); text != "" {
		t, err := streams.ParseToken(text)
		if err != nil {
			return nil, matrix.InvalidParam("since is not a token of ours")
		}
		s.since = &t
	}
	var err error
	if s.filter, err = a.filterOf(r.Context(), r, q.Get("filter")); err != nil {
		return nil, err
	}
	s.leave = s.filter.Room.IncludeLeave
	return s, nil
}

// from is the position after which things are new to the client.
func (s *syncer) from() store.Pos {
	if s.since == nil {
		return 0
	}
	return s.since.Pos
}

func (s *syncer) typingFrom() int64 {
	if s.since == nil {
		return 0
	}
	return s.since.Typing
}

// build makes the response and reports whether there is something in it.
func (s *syncer) build(ctx context.Context) (something bool, err error) {
	s.now = s.api.Hub.Now()
	s.out = &syncResponse{UnusedFallback: []string{}}
	if err := s.toDevice(ctx); err != nil {
		return false, err
	}
	s.out.NextBatch = s.now.String()
	s.met, s.parted = map[matrix.UserID]bool{}, map[matrix.UserID]bool{}
	rooms := &syncRooms{Join: map[matrix.RoomID]*joinedRoom{}, Invite: map[matrix.RoomID]*strangeRoom{}, Knock: map[matrix.RoomID]*strangeRoom{}, Leave: map[matrix.RoomID]*joinedRoom{}}
	roomData, err := s.accountData(ctx)
	if err != nil {
		return false, err
	}
	if err := s.rooms(ctx, rooms, roomData); err != nil {
		return false, err
	}
	if !rooms.empty() {
		s.out.Rooms = rooms
	}
	if err := s.devices(ctx); err != nil {
		return false, err
	}
	if err := s.presence(ctx); err != nil {
		return false, err
	}
	o := s.out
	return o.Rooms != nil || o.AccountData != nil || o.Presence != nil || o.ToDevice != nil || o.DeviceLists != nil, nil
}

// ownNews reports whether there may be something for the user alone.
func (s *syncer) ownNews() bool {
	return s.since == nil || s.api.Hub.UserChanged(s.r.user, *s.since)
}

// accountData fills in what is global and returns what belongs to rooms.
func (s *syncer) accountData(ctx context.Context) (map[matrix.RoomID][]dataEvent, error) {
	if !s.ownNews() {
		return nil, nil
	}
	list, err := s.api.Store.AccountDataSince(ctx, s.r.user, s.from(), s.now.Pos)
	if err != nil {
		return nil, err
	}
	if s.since == nil {
		if list, err = s.withPushRules(ctx, list); err != nil {
			return nil, err
		}
	}
	ofRooms := map[matrix.RoomID][]dataEvent{}
	for _, d := range list {
		e := dataEvent{Type: d.Type, Content: d.Content}
		switch {
		case d.Room != "":
			if s.filter.Room.AccountData.wantsType(d.Type) && s.filter.Room.AccountData.wantsRoom(d.Room) {
				ofRooms[d.Room] = append(ofRooms[d.Room], e)
			}
		case s.filter.AccountData.wantsType(d.Type):
			if s.out.AccountData == nil {
				s.out.AccountData = &dataEvents{}
			}
			s.out.AccountData.Events = append(s.out.AccountData.Events, e)
		}
	}
	return ofRooms, nil
}

// withPushRules adds the default push rules for those who never changed them.
func (s *syncer) withPushRules(ctx context.Context, list []store.AccountData) ([]store.AccountData, error) {
	if slices.ContainsFunc(list, func(d store.AccountData) bool { return d.Room == "" && d.Type == "m.push_rules" }) {
		return list, nil
	}
	content, err := s.api.pushRulesContent(ctx, s.r.user)
	return append(list, store.AccountData{Type: "m.push_rules", Content: content}), err
}

// rooms fills in each room that the user has to do with.
func (s *syncer) rooms(ctx context.Context, out *syncRooms, data map[matrix.RoomID][]dataEvent) error {
	memberships, err := s.api.Store.MembershipsOf(ctx, s.r.user)
	if err != nil {
		return err
	}
	s.joinedRooms = s.joinedRooms[:0]
	for _, m := range memberships {
		if m.Pos > s.now.Pos { // it is for the next response
			if m, err = s.before(ctx, m); err != nil {
				return err
			}
		}
		if m.Membership == matrix.Join {
			s.joinedRooms = append(s.joinedRooms, m.Room)
		}
		if !s.filter.wantsRoom(m.Room) {
			continue
		}
		switch m.Membership {
		case matrix.Join:
			err = s.joined(ctx, out, m, data[m.Room])
		case matrix.Invite, matrix.Knock:
			err = s.strange(ctx, out, m)
		case "":
		default:
			if m.Pos <= s.from() || s.since == nil && !s.leave {
				continue
			}
			if s.since == nil { // that one has left is news even of a room that is forgotten
				forgotten, ferr := s.api.Store.Forgotten(ctx, s.r.user)
				if ferr != nil {
					return ferr
				}
				if forgotten[m.Room] {
					continue
				}
			}
			err = s.left(ctx, out, m, data[m.Room])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// strange shows a room to someone invited or knocking: its stripped state.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#stripped-state
func (s *syncer) strange(ctx context.Context, out *syncRooms, m store.Membership) error {
	if m.Pos <= s.from() && !s.full {
		return nil
	}
	if ignored, err := s.ignores(ctx, m); err != nil || ignored {
		return err
	}
	events, err := s.api.strippedState(ctx, m.Room, s.r.user)
	if err != nil {
		return err
	}
	if m.Membership == matrix.Invite {
		out.Invite[m.Room] = &strangeRoom{Invite: &roomEvents{events}}
	} else {
		out.Knock[m.Room] = &strangeRoom{Knock: &roomEvents{events}}
	}
	return nil
}

// ignores reports whether a room is one that somebody whom the user ignores invites
// to.
func (s *syncer) ignores(ctx context.Context, m store.Membership) (bool, error) {
	content, err := s.api.Store.AccountData(ctx, s.r.user, "", "m.ignored_user_list")
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	invitation, err := s.api.Store.EventsByPos(ctx, []store.Pos{m.Pos})
	if err != nil || invitation[m.Pos] == nil {
		return false, err
	}
	ignored := gjson.GetBytes(content, "ignored_users").Map()
	_, is := ignored[string(invitation[m.Pos].Sender)]
	return is, nil
}

// strippedTypes are shown to those who are not in a room yet.
var strippedTypes = []string{matrix.TypeCreate, matrix.TypeName, matrix.TypeAvatar, matrix.TypeTopic, matrix.TypeJoinRules, matrix.TypeCanonicalAlias, matrix.TypeEncryption}

func (a *api) strippedState(ctx context.Context, room matrix.RoomID, user matrix.UserID) ([]matrix.Event, error) {
	list, err := a.Store.CurrentStateOf(ctx, room, strippedTypes...)
	if err != nil {
		return nil, err
	}
	own, err := a.Store.CurrentStateKey(ctx, room, matrix.TypeMember, string(user))
	if err != nil {
		return nil, err
	}
	if own != nil {
		inviter, err := a.Store.CurrentStateKey(ctx, room, matrix.TypeMember, string(own.Sender))
		if err != nil {
			return nil, err
		}
		if inviter != nil && own.Sender != user {
			list = append(list, inviter)
		}
		list = append(list, own)
	}
	out := make([]matrix.Event, 0, len(list))
	for _, e := range list {
		stripped := matrix.Event{Type: e.Type, Sender: e.Sender, StateKey: e.StateKey, Content: e.Content}
		if e == own { // clients like to know which event it was, and when
			stripped.ID, stripped.OriginServerTS = e.ID, e.OriginServerTS
		}
		out = append(out, stripped)
	}
	return out, nil
}

// stretch is what a client gets of a room: events with from < pos ≤ to, and the
// state that goes with them.
type stretch struct {
	room     matrix.RoomID
	from, to store.Pos
	full     bool // the client knows nothing of the room
	member   store.Membership
}

func (s *syncer) joined(ctx context.Context, out *syncRooms, m store.Membership, data []dataEvent) error {
	st := stretch{room: m.Room, from: s.from(), to: s.now.Pos, full: s.since == nil, member: m}
	if s.since != nil && m.Pos > s.since.Pos {
		was, err := s.membershipAt(ctx, m.Room, s.since.Pos)
		if err != nil {
			return err
		}
		if was != matrix.Join {
			st.full, st.from = true, 0
		}
	}
	changed := st.full || s.full || s.api.Hub.RoomChanged(m.Room, *s.since)
	if !changed && len(data) == 0 {
		return nil
	}
	jr := &joinedRoom{Timeline: timeline{Events: []matrix.Event{}}}
	if changed {
		v, err := s.api.viewerAs(ctx, m)
		if err != nil {
			return err
		}
		if jr, err = s.stretch(ctx, st, v); err != nil {
			return err
		}
		if err := s.ephemeral(ctx, st, jr); err != nil {
			return err
		}
	}
	if len(data) > 0 {
		jr.AccountData = &dataEvents{data}
	}
	if st.full || s.full || jr.news() {
		out.Join[m.Room] = jr
	}
	return nil
}

// news reports whether there is anything in the room to tell.
func (j *joinedRoom) news() bool {
	return len(j.Timeline.Events) > 0 || j.State != nil && len(j.State.Events) > 0 || j.StateAfter != nil && len(j.StateAfter.Events) > 0 ||
		j.Ephemeral != nil || j.AccountData != nil
}

func (s *syncer) left(ctx context.Context, out *syncRooms, m store.Membership, data []dataEvent) error {
	st := stretch{room: m.Room, from: s.from(), to: m.Pos, full: s.since == nil, member: m}
	if s.since != nil {
		was, err := s.membershipAt(ctx, m.Room, s.since.Pos)
		if err != nil {
			return err
		}
		if was != matrix.Join {
			st.full, st.from = true, 0
		}
	}
	v, err := s.api.viewerAs(ctx, m)
	if err != nil {
		return err
	}
	if s.since != nil && !v.never {
		if err := s.part(ctx, v); err != nil {
			return err
		}
	}
	jr, err := s.stretch(ctx, st, v)
	if err != nil {
		return err
	}
	jr.Summary, jr.Unread = nil, nil
	if len(data) > 0 {
		jr.AccountData = &dataEvents{data}
	}
	out.Leave[m.Room] = jr
	return nil
}

// part notes that the user is no longer in a room with those who were its members.
func (s *syncer) part(ctx context.Context, v *viewer) error {
	state, err := s.api.stateAfter(ctx, v.until)
	for _, e := range state {
		if e.Type == matrix.TypeMember && e.Membership() == matrix.Join {
			s.parted[matrix.UserID(*e.StateKey)] = true
		}
	}
	return err
}

// before is the user's membership in a room as of the response, where it has changed
// since.
func (s *syncer) before(ctx context.Context, m store.Membership) (store.Membership, error) {
	history, err := s.api.Store.MembershipHistory(ctx, m.Room, s.r.user)
	was := store.Membership{Room: m.Room, User: s.r.user}
	for _, h := range history {
		if h.Pos <= s.now.Pos {
			was = h
		}
	}
	return was, err
}

// membershipAt is what the user was in a room at a position.
func (s *syncer) membershipAt(ctx context.Context, room matrix.RoomID, at store.Pos) (string, error) {
	history, err := s.api.Store.MembershipHistory(ctx, room, s.r.user)
	was := ""
	for _, m := range history {
		if m.Pos <= at {
			was = m.Membership
		}
	}
	return was, err
}

// defaultTimeline is how many events of a room come without a filter that says.
const defaultTimeline = 20

// stretch reads the timeline and its state.
func (s *syncer) stretch(ctx context.Context, st stretch, v *viewer) (jr *joinedRoom, err error) {
	p := page{viewer: v, from: st.to, to: st.from, backward: true, limit: s.filter.Room.Timeline.limit(defaultTimeline, 200), filter: s.filter.Room.Timeline}
	var events []*store.Event
	var next store.Pos
	switch {
	case !p.filter.wantsRoom(st.room):
	case p.limit == 0:
		next = st.to
	default:
		if events, next, err = p.read(ctx); err != nil {
			return nil, err
		}
	}
	slices.Reverse(events)
	kept, err := s.withoutStale(ctx, st, v, events)
	if err != nil {
		return nil, err
	}
	jr = &joinedRoom{Timeline: timeline{Limited: next > st.from || st.full && s.since != nil || len(kept) < len(events)}}
	events = kept
	if len(events) > 0 {
		jr.Timeline.PrevBatch = streams.Token{Pos: events[0].Pos - 1}.String()
	} else {
		jr.Timeline.PrevBatch = streams.Token{Pos: st.to}.String()
	}
	if jr.Timeline.Events, err = s.api.timelineEvents(ctx, s.r, v, events, true); err != nil {
		return nil, err
	}
	return jr, s.state(ctx, st, v, events, jr)
}

// state fills in the state before the timeline, or after it if the client wants
// that: all of it, or what has changed since the client last looked.
func (s *syncer) state(ctx context.Context, st stretch, v *viewer, events []*store.Event, jr *joinedRoom) error {
	list, members, err := s.stateOf(ctx, st, v, events)
	if err != nil {
		return err
	}
	f := &s.filter.Room.State
	if !f.wantsRoom(st.room) {
		list = nil
	}
	if f.LazyLoad {
		if list, err = s.lazily(ctx, st, events, list); err != nil {
			return err
		}
	}
	printed, err := s.api.clientEvents(ctx, s.r, f.keep(list), true)
	if err != nil {
		return err
	}
	if s.after {
		jr.StateAfter = &roomEvents{printed}
	} else {
		jr.State = &roomEvents{printed}
	}
	if st.full || s.full || members {
		if jr.Summary, err = s.summary(ctx, st.room); err != nil {
			return err
		}
	}
	jr.Unread, err = s.unread(ctx, st.room)
	return err
}

// stateOf reads the state events, and reports whether the membership of anyone has
// changed since the client last looked.
func (s *syncer) stateOf(ctx context.Context, st stretch, v *viewer, events []*store.Event) (list []*store.Event, members bool, err error) {
	if st.full {
		if err := s.meet(ctx, st.member); err != nil {
			return nil, false, err
		}
		list, err = s.wholeState(ctx, st, v, events)
		return list, true, err
	}
	before, after, err := s.changes(ctx, st, v)
	if err != nil {
		return nil, false, err
	}
	if members, err = s.membersChanged(ctx, before, after); err != nil {
		return nil, false, err
	}
	switch {
	case s.full:
		list, err = s.wholeState(ctx, st, v, events)
	case s.after || len(events) == 0:
		list, err = s.api.eventsOf(ctx, after)
	default:
		_, early, err := s.api.Store.StateChanges(ctx, st.room, st.from, v.stateUpTo(events[0].Pos-1))
		if err != nil {
			return nil, false, err
		}
		list, err = s.api.eventsOf(ctx, withUntold(early, after, events))
		return list, members, err
	}
	return list, members, err
}

// meet notes whom the user meets in a room that is new to the client.
func (s *syncer) meet(ctx context.Context, m store.Membership) error {
	if s.since == nil || m.Membership != matrix.Join {
		return nil
	}
	members, err := s.api.Store.Members(ctx, m.Room, matrix.Join)
	for _, other := range members {
		s.met[other.User] = true
	}
	return err
}

// changes of state between what the client knows and the end of the stretch, as far as
// the user may know them.
func (s *syncer) changes(ctx context.Context, st stretch, v *viewer) (before, after store.StateMap, err error) {
	end := v.stateUpTo(st.to)
	before, after, err = s.api.Store.StateChanges(ctx, st.room, st.from, end)
	if end < st.member.Pos { // left, and banned later
		after[matrix.StateKey{Type: matrix.TypeMember, Key: string(s.r.user)}] = st.member.Pos
	}
	return before, after, err
}

// withoutStale cuts off the beginning of a timeline that would have the client take for
// current a state event that has been replaced, by one that is kept out of the timeline:
// what is before the timeline cannot say so.
func (s *syncer) withoutStale(ctx context.Context, st stretch, v *viewer, events []*store.Event) ([]*store.Event, error) {
	if s.after || v.open && s.filter.Room.Timeline.all() || !slices.ContainsFunc(events, func(e *store.Event) bool { return e.IsState() }) {
		return events, nil
	}
	st.from = events[0].Pos - 1
	_, after, err := s.changes(ctx, st, v)
	if err != nil {
		return nil, err
	}
	told := map[store.Pos]bool{}
	for _, e := range events {
		told[e.Pos] = true
	}
	stale := 0
	for i, e := range events {
		if e.IsState() && after[e.Key()] > e.Pos && !told[after[e.Key()]] {
			stale = i + 1
		}
	}
	return events[stale:], nil
}

// withUntold adds to the state before the timeline what has changed since then and is
// not in the timeline, because the filter or the history visibility keeps it out.
func withUntold(state, after store.StateMap, events []*store.Event) store.StateMap {
	told := map[store.Pos]bool{}
	for _, e := range events {
		told[e.Pos] = true
	}
	for k, pos := range after {
		if pos >= events[0].Pos && !told[pos] {
			state[k] = pos
		}
	}
	return state
}

// wholeState is all of the state before the timeline, or after it if the client wants
// that or there is no timeline.
func (s *syncer) wholeState(ctx context.Context, st stretch, v *viewer, events []*store.Event) ([]*store.Event, error) {
	if v.outside() {
		own, err := s.api.eventsAt(ctx, []store.Pos{st.member.Pos})
		if !s.after && len(events) > 0 {
			own = nil // it is in the timeline
		}
		return own, err
	}
	snapshot, early := v.until, !s.after && len(events) > 0
	switch {
	case early && (v.until == 0 || events[0].Pos <= v.until):
		snapshot = events[0].Snapshot
	case v.until == 0:
		return s.api.Store.CurrentState(ctx, st.room)
	}
	complete := v.open && s.filter.Room.Timeline.all() // the timeline leaves nothing out
	if early && complete {
		return s.api.stateAt(ctx, snapshot)
	}
	state, err := s.api.Store.StateAt(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	st.from = snapshot
	_, after, err := s.changes(ctx, st, v)
	if err != nil {
		return nil, err
	}
	if early {
		state = withUntold(state, after, events)
	} else {
		maps.Copy(state, after)
	}
	return s.api.eventsOf(ctx, state)
}

// membersChanged notes who has come and gone, for the lists of devices.
func (s *syncer) membersChanged(ctx context.Context, before, after store.StateMap) (bool, error) {
	var numbers []store.Pos
	for k, pos := range after {
		if k.Type == matrix.TypeMember {
			numbers = append(numbers, pos)
			if before[k] > 0 {
				numbers = append(numbers, before[k])
			}
		}
	}
	if len(numbers) == 0 {
		return false, nil
	}
	events, err := s.api.Store.EventsByPos(ctx, numbers)
	if err != nil {
		return false, err
	}
	for k, pos := range after {
		if k.Type != matrix.TypeMember {
			continue
		}
		was, is := "", events[pos].Membership()
		if b := events[before[k]]; b != nil {
			was = b.Membership()
		}
		switch {
		case is == matrix.Join && was != matrix.Join:
			s.met[matrix.UserID(k.Key)] = true
		case is != matrix.Join && was == matrix.Join:
			s.parted[matrix.UserID(k.Key)] = true
		}
	}
	return true, nil
}

// lazily leaves out membership events but those of the timeline's senders and of
// the user, and adds those that the client may not have.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members
func (s *syncer) lazily(ctx context.Context, st stretch, events, list []*store.Event) ([]*store.Event, error) {
	wanted := map[string]bool{}
	for _, u := range senders(events) {
		wanted[string(u)] = true
	}
	if st.full || s.full {
		wanted[string(s.r.user)] = true
	}
	kept := list[:0:0]
	for _, e := range list {
		if e.Type == matrix.TypeMember {
			if !wanted[*e.StateKey] {
				continue
			}
			delete(wanted, *e.StateKey)
		}
		kept = append(kept, e)
	}
	if st.full || s.full {
		return kept, nil // what the state does not have the timeline does
	}
	for _, e := range events {
		if e.Type == matrix.TypeMember && e.IsState() {
			delete(wanted, *e.StateKey)
		}
	}
	var users []matrix.UserID
	for u := range wanted {
		users = append(users, matrix.UserID(u))
	}
	members, err := s.api.Store.CurrentMembers(ctx, st.room, users)
	return append(kept, members...), err
}

// summary of a room for those that load members lazily.
func (s *syncer) summary(ctx context.Context, room matrix.RoomID) (*heroes, error) {
	h := &heroes{}
	members, err := s.api.Store.Members(ctx, room)
	if err != nil {
		return nil, err
	}
	var present, absent []store.Membership
	for _, m := range members {
		switch m.Membership {
		case matrix.Join:
			h.Joined++
		case matrix.Invite:
			h.Invited++
		}
		switch {
		case m.User == s.r.user:
		case m.Membership == matrix.Join || m.Membership == matrix.Invite:
			present = append(present, m)
		default:
			absent = append(absent, m)
		}
	}
	if len(present) == 0 {
		present = absent
	}
	slices.SortFunc(present, func(x, y store.Membership) int { return int(x.Pos - y.Pos) })
	for _, m := range present[:min(5, len(present))] {
		h.Heroes = append(h.Heroes, m.User)
	}
	return h, nil
}

// unread counts what others have said since the user's last receipt.
func (s *syncer) unread(ctx context.Context, room matrix.RoomID) (*unread, error) {
	n, err := s.api.Store.UnreadCount(ctx, room, s.r.user, maxUnread)
	return &unread{Notifications: n}, err
}

// maxUnread is where counting ends.
const maxUnread = 100

// ephemeral fills in who types and who has read how far.
func (s *syncer) ephemeral(ctx context.Context, st stretch, jr *joinedRoom) error {
	f := &s.filter.Room.Ephemeral
	if !f.wantsRoom(st.room) {
		return nil
	}
	var events []dataEvent
	typingFrom := s.typingFrom()
	if st.full {
		typingFrom = 0
	}
	if users, changed := s.api.Typing.Since(st.room, typingFrom); changed && f.wantsType("m.typing") {
		content, err := json.Marshal(map[string]any{"user_ids": users})
		if err != nil {
			return err
		}
		events = append(events, dataEvent{Type: "m.typing", Content: content})
	}
	if f.wantsType("m.receipt") {
		receipts, err := s.api.Store.ReceiptsSince(ctx, st.room, st.from, st.to)
		if err != nil {
			return err
		}
		if content := receiptContent(receipts, s.r.user); content != nil {
			events = append(events, dataEvent{Type: "m.receipt", Content: content})
		}
	}
	if len(events) > 0 {
		jr.Ephemeral = &dataEvents{events}
	}
	return nil
}

// receiptContent is the content of m.receipt, nil if there are none for the user.
func receiptContent(list []store.Receipt, user matrix.UserID) json.RawMessage {
	type data struct {
		TS     int64  `json:"ts"`
		Thread string `json:"thread_id,omitempty"`
	}
	content := map[matrix.EventID]map[string]map[matrix.UserID]data{}
	for _, r := range list {
		if r.Type == "m.read.private" && r.User != user {
			continue
		}
		if content[r.Event] == nil {
			content[r.Event] = map[string]map[matrix.UserID]data{}
		}
		if content[r.Event][r.Type] == nil {
			content[r.Event][r.Type] = map[matrix.UserID]data{}
		}
		content[r.Event][r.Type][r.User] = data{r.TS, r.Thread}
	}
	if len(content) == 0 {
		return nil
	}
	b, err := json.Marshal(content)
	if err != nil {
		return nil
	}
	return b
}

// maxToDevice is how many to-device messages one response has at most.
const maxToDevice = 500

// hasDevice reports whether a device asks.
func (s *syncer) hasDevice() bool {
	return s.device != "" && (s.r.service == nil || s.r.URL.Query().Get("device_id") != "")
}

// devices fills in keys left, and whose devices have changed.
func (s *syncer) devices(ctx context.Context) error {
	if !s.hasDevice() {
		return nil
	}
	st := s.api.Store
	var err error
	if s.out.KeyCounts, s.out.UnusedFallback, err = st.KeyCounts(ctx, s.r.user, s.device); err != nil {
		return err
	}
	if s.out.UnusedFallback == nil {
		s.out.UnusedFallback = []string{}
	}
	if s.since == nil {
		return nil
	}
	return s.deviceLists(ctx)
}

// toDevice fills in to-device messages. If there are more than fit, the response goes
// only as far as the last that does: the next request acknowledges all before its token.
func (s *syncer) toDevice(ctx context.Context) error {
	if !s.hasDevice() || !s.ownNews() {
		return nil
	}
	messages, err := s.api.Store.ToDevice(ctx, s.r.user, s.device, s.from(), s.now.Pos, maxToDevice)
	if err != nil || len(messages) == 0 {
		return err
	}
	if len(messages) == maxToDevice {
		s.now.Pos = messages[maxToDevice-1].Pos
	}
	s.out.ToDevice = &dataEvents{}
	for _, m := range messages {
		s.out.ToDevice.Events = append(s.out.ToDevice.Events, dataEvent{m.Type, m.Sender, m.Content})
	}
	return nil
}

func (s *syncer) deviceLists(ctx context.Context) error {
	changed, err := s.api.Store.DeviceChanges(ctx, s.from(), s.now.Pos)
	if err != nil {
		return err
	}
	for u := range s.met {
		changed = append(changed, u)
	}
	if len(changed) == 0 && len(s.parted) == 0 {
		return nil
	}
	ask := slices.Clone(changed)
	for u := range s.parted {
		ask = append(ask, u)
	}
	shared, err := s.api.Store.ShareRoom(ctx, s.r.user, ask)
	if err != nil {
		return err
	}
	shared[s.r.user] = true
	lists := &struct {
		Changed []matrix.UserID `json:"changed"`
		Left    []matrix.UserID `json:"left"`
	}{[]matrix.UserID{}, []matrix.UserID{}}
	slices.Sort(changed)
	for _, u := range slices.Compact(changed) {
		if shared[u] && (u != s.r.user || !s.met[u]) {
			lists.Changed = append(lists.Changed, u)
		}
	}
	for u := range s.parted {
		if !shared[u] {
			lists.Left = append(lists.Left, u)
		}
	}
	if len(lists.Changed)+len(lists.Left) > 0 {
		s.out.DeviceLists = lists
	}
	return nil
}

// presence fills in the presence of those that the user shares a room with.
func (s *syncer) presence(ctx context.Context) error {
	if !s.filter.Presence.wantsType("m.presence") {
		return nil
	}
	list, err := s.api.Store.PresenceChanges(ctx, s.from(), s.now.Pos)
	if err != nil {
		return err
	}
	if s.since != nil { // those whom the client has not met before
		met, err := s.api.Store.PresenceOf(ctx, slices.Collect(maps.Keys(s.met)), s.from())
		if err != nil {
			return err
		}
		list = append(list, met...)
	}
	if len(list) == 0 {
		return nil
	}
	users := make([]matrix.UserID, 0, len(list))
	for _, p := range list {
		users = append(users, p.User)
	}
	shared, err := s.api.Store.ShareRoom(ctx, s.r.user, users)
	if err != nil {
		return err
	}
	shared[s.r.user] = true
	for _, p := range list {
		if !shared[p.User] {
			continue
		}
		content, err := json.Marshal(newPresence(p))
		if err != nil {
			return err
		}
		if s.out.Presence == nil {
			s.out.Presence = &dataEvents{}
		}
		s.out.Presence.Events = append(s.out.Presence.Events, dataEvent{"m.presence", p.User, content})
	}
	return nil
}

// presence is the content of m.presence.
type presence struct {
	State     string `json:"presence"`
	Status    string `json:"status_msg,omitempty"`
	LastAgo   int64  `json:"last_active_ago"` // ms
	Currently bool   `json:"currently_active,omitempty"`
}

func newPresence(p store.Presence) presence {
	return presence{p.State, p.StatusMsg, max(0, time.Now().UnixMilli()-p.LastActive), p.CurrentlyActive}
}
