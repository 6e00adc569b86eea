package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (a *api) pushRoutes() []route {
	return []route{
		{"GET", "/v3/pushrules/{$}", user, (*api).getPushRules},
		{"GET", "/v3/pushrules", user, (*api).getPushRules},
		{"GET", "/v3/pushrules/global/{$}", user, (*api).getPushRulesGlobal},
		{"GET", "/v3/pushrules/global/{kind}/{ruleID}", user, (*api).getPushRule},
		{"PUT", "/v3/pushrules/global/{kind}/{ruleID}", user, (*api).putPushRule},
		{"DELETE", "/v3/pushrules/global/{kind}/{ruleID}", user, (*api).deletePushRule},
		{"GET", "/v3/pushrules/global/{kind}/{ruleID}/enabled", user, (*api).getPushRuleEnabled},
		{"PUT", "/v3/pushrules/global/{kind}/{ruleID}/enabled", user, (*api).putPushRuleEnabled},
		{"GET", "/v3/pushrules/global/{kind}/{ruleID}/actions", user, (*api).getPushRuleActions},
		{"PUT", "/v3/pushrules/global/{kind}/{ruleID}/actions", user, (*api).putPushRuleActions},
		{"GET", "/v3/pushers", user, (*api).getPushers},
		{"POST", "/v3/pushers/set", user, (*api).postPusher},
		{"GET", "/v3/notifications", user, (*api).getNotifications},
	}
}

// pushRule: https://spec.matrix.org/v1.19/client-server-api/#push-rules
type pushRule struct {
	ID         string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Actions    []json.RawMessage `json:"actions"`
	Conditions []json.RawMessage `json:"conditions,omitempty"` // of override and underride
	Pattern    string            `json:"pattern,omitempty"`    // of content
}

// ruleset has the rules of each kind, the most important first.
type ruleset struct {
	Override  []pushRule `json:"override"`
	Content   []pushRule `json:"content"`
	Room      []pushRule `json:"room"`
	Sender    []pushRule `json:"sender"`
	Underride []pushRule `json:"underride"`
}

type pushRules struct {
	Global ruleset `json:"global"`
}

// kind returns the rules of a kind, nil if there is no such kind.
func (s *ruleset) kind(name string) *[]pushRule {
	return map[string]*[]pushRule{"override": &s.Override, "content": &s.Content, "room": &s.Room, "sender": &s.Sender, "underride": &s.Underride}[name]
}

// What rules of the specification do.
const (
	notify      = `"notify"`
	sound       = `{"set_tweak":"sound","value":"default"}`
	ring        = `{"set_tweak":"sound","value":"ring"}`
	highlight   = `{"set_tweak":"highlight"}`
	ofType      = `{"kind":"event_match","key":"type","pattern":"`
	oneToOne    = `{"kind":"room_member_count","is":"2"}`
	stateKey    = `{"kind":"event_match","key":"state_key","pattern":"`
	mayNotify   = `{"kind":"sender_notification_permission","key":"room"}`
	endOfString = `"}`
)

// predefined are the rules of
// https://spec.matrix.org/v1.19/client-server-api/#predefined-rules, in its order.
// {user} in a condition stands for the user's ID, as JSON has it.
var predefined = []struct {
	kind, id            string
	conditions, actions []string
}{
	{"override", ".m.rule.master", nil, nil},
	{"override", ".m.rule.suppress_notices", []string{`{"kind":"event_match","key":"content.msgtype","pattern":"m.notice"}`}, nil},
	{"override", ".m.rule.invite_for_me", []string{ofType + "m.room.member" + endOfString,
		`{"kind":"event_match","key":"content.membership","pattern":"invite"}`, stateKey + "{user}" + endOfString}, []string{notify, sound}},
	{"override", ".m.rule.member_event", []string{ofType + "m.room.member" + endOfString}, nil},
	{"override", ".m.rule.is_user_mention", []string{`{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"{user}"}`}, []string{notify, sound, highlight}},
	{"override", ".m.rule.is_room_mention", []string{`{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true}`, mayNotify}, []string{notify, highlight}},
	{"override", ".m.rule.tombstone", []string{ofType + "m.room.tombstone" + endOfString, stateKey + endOfString}, []string{notify, highlight}},
	{"override", ".m.rule.reaction", []string{ofType + "m.reaction" + endOfString}, nil},
	{"override", ".m.rule.room.server_acl", []string{ofType + "m.room.server_acl" + endOfString, stateKey + endOfString}, nil},
	{"override", ".m.rule.suppress_edits", []string{`{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}`}, nil},
	{"underride", ".m.rule.call", []string{ofType + "m.call.invite" + endOfString}, []string{notify, ring}},
	{"underride", ".m.rule.encrypted_room_one_to_one", []string{oneToOne, ofType + "m.room.encrypted" + endOfString}, []string{notify, sound}},
	{"underride", ".m.rule.room_one_to_one", []string{oneToOne, ofType + "m.room.message" + endOfString}, []string{notify, sound}},
	{"underride", ".m.rule.message", []string{ofType + "m.room.message" + endOfString}, []string{notify}},
	{"underride", ".m.rule.encrypted", []string{ofType + "m.room.encrypted" + endOfString}, []string{notify}},
}

// defaultPushRules of a user who has changed nothing.
func defaultPushRules(u matrix.UserID) *pushRules {
	quoted, _ := json.Marshal(u) // a string: cannot fail
	id := strings.NewReplacer("{user}", string(quoted[1:len(quoted)-1]))
	var p pushRules
	for _, d := range predefined {
		r := pushRule{ID: d.id, Default: true, Enabled: d.id != ".m.rule.master", Actions: []json.RawMessage{}}
		for _, c := range d.conditions {
			r.Conditions = append(r.Conditions, json.RawMessage(id.Replace(c)))
		}
		for _, action := range d.actions {
			r.Actions = append(r.Actions, json.RawMessage(action))
		}
		list := p.Global.kind(d.kind)
		*list = append(*list, r)
	}
	p.fill()
	return &p
}

// fill makes lists that are to be there be there.
func (p *pushRules) fill() {
	for _, name := range []string{"override", "content", "room", "sender", "underride"} {
		if list := p.Global.kind(name); *list == nil {
			*list = []pushRule{}
		}
	}
}

// parsePushRules reads stored rules; nil is nothing changed yet.
func parsePushRules(u matrix.UserID, content json.RawMessage) (*pushRules, error) {
	if content == nil {
		return defaultPushRules(u), nil
	}
	var p pushRules
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, err
	}
	p.fill()
	return &p, nil
}

func (a *api) pushRules(ctx context.Context, u matrix.UserID) (*pushRules, error) {
	content, err := a.Store.AccountData(ctx, u, "", "m.push_rules")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return parsePushRules(u, content)
}

// pushRulesContent is the content of a user's m.push_rules, also if they have
// changed nothing.
func (a *api) pushRulesContent(ctx context.Context, u matrix.UserID) (json.RawMessage, error) {
	p, err := a.pushRules(ctx, u)
	if err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

func (a *api) getPushRules(r *request) (any, error) { return a.pushRules(r.Context(), r.user) }

func (a *api) getPushRulesGlobal(r *request) (any, error) {
	p, err := a.pushRules(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	return p.Global, nil
}

// rule finds the rule that the path names.
func (p *pushRules) rule(r *request) (*pushRule, error) {
	list := p.Global.kind(r.PathValue("kind"))
	if list == nil {
		return nil, matrix.NotFound("There is no kind of rules called %.40q", r.PathValue("kind"))
	}
	i := indexRule(*list, r.PathValue("ruleID"))
	if i < 0 {
		return nil, matrix.NotFound("There is no such push rule")
	}
	return &(*list)[i], nil
}

func indexRule(list []pushRule, id string) int {
	return slices.IndexFunc(list, func(r pushRule) bool { return r.ID == id })
}

func (a *api) pushRule(r *request) (*pushRule, error) {
	p, err := a.pushRules(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	return p.rule(r)
}

func (a *api) getPushRule(r *request) (any, error) { return a.pushRule(r) }

func (a *api) getPushRuleEnabled(r *request) (any, error) {
	rule, err := a.pushRule(r)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"enabled": rule.Enabled}, nil
}

func (a *api) getPushRuleActions(r *request) (any, error) {
	rule, err := a.pushRule(r)
	if err != nil {
		return nil, err
	}
	return map[string]any{"actions": rule.Actions}, nil
}

// maxPushRules is how large all of one user's may be, in bytes.
const maxPushRules = 256 << 10

// changePushRules stores what change makes of the user's rules.
func (a *api) changePushRules(r *request, change func(*pushRules) error) (any, error) {
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		pos, err := a.Store.UpdateAccountData(tx, r.user, "", "m.push_rules", func(before json.RawMessage) (json.RawMessage, error) {
			p, err := parsePushRules(r.user, before)
			if err != nil {
				return nil, err
			}
			if err := change(p); err != nil {
				return nil, err
			}
			after, err := json.Marshal(p)
			if err == nil && len(after) > maxPushRules {
				err = matrix.Errorf(http.StatusBadRequest, matrix.CodeTooLarge, "There are too many push rules")
			}
			return after, err
		})
		if err == nil {
			tx.OnCommit(func() { a.Hub.Notify(pos, nil, []matrix.UserID{r.user}) })
		}
		return err
	})
}

// putPushRule: https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3pushrulesglobalkindruleid
func (a *api) putPushRule(r *request) (any, error) {
	rule, err := r.newPushRule()
	if err != nil {
		return nil, err
	}
	return a.changePushRules(r, func(p *pushRules) error {
		list := p.Global.kind(r.PathValue("kind"))
		placed, err := place(*list, rule, r.URL.Query())
		*list = placed
		return err
	})
}

// newPushRule reads a rule from the request.
func (r *request) newPushRule() (rule pushRule, err error) {
	var in struct {
		Actions    []json.RawMessage `json:"actions"`
		Conditions []json.RawMessage `json:"conditions"`
		Pattern    *string           `json:"pattern"`
	}
	if err := r.decode(&in); err != nil {
		return rule, err
	}
	kind, id := r.PathValue("kind"), r.PathValue("ruleID")
	switch {
	case (&ruleset{}).kind(kind) == nil:
		return rule, matrix.InvalidParam("There is no kind of rules called %.40q", kind)
	case strings.HasPrefix(id, "."):
		return rule, matrix.InvalidParam("Rules that start with . are the server's")
	case id == "" || len(id) > matrix.MaxIDLength || strings.ContainsAny(id, `/\`):
		return rule, matrix.InvalidParam("The rule's ID is not one")
	case kind == "content" && in.Pattern == nil:
		return rule, matrix.MissingParam("No pattern")
	}
	if rule.Actions, err = actions(in.Actions); err != nil {
		return rule, err
	}
	rule.ID, rule.Enabled = id, true
	if kind == "content" {
		rule.Pattern = *in.Pattern
	}
	if kind == "override" || kind == "underride" {
		for _, c := range in.Conditions {
			var condition struct {
				Kind string `json:"kind"`
			}
			if err := decodeJSON(c, &condition); err != nil {
				return rule, err
			}
			if condition.Kind == "" {
				return rule, matrix.InvalidParam("A condition has no kind")
			}
		}
		rule.Conditions = in.Conditions
	}
	return rule, nil
}

// actions checks the actions of a rule: texts, and objects that set a tweak.
func actions(in []json.RawMessage) ([]json.RawMessage, error) {
	if in == nil {
		return nil, matrix.MissingParam("No actions")
	}
	for _, raw := range in {
		var name string
		var tweak struct {
			Name string `json:"set_tweak"`
		}
		switch first(raw) {
		case '"':
			if err := decodeJSON(raw, &name); err != nil {
				return nil, err
			}
			if name != "notify" && name != "dont_notify" && name != "coalesce" {
				return nil, matrix.InvalidParam("Unknown action %.40q", name)
			}
		case '{':
			if err := decodeJSON(raw, &tweak); err != nil {
				return nil, err
			}
			if tweak.Name == "" {
				return nil, matrix.InvalidParam("An action has no set_tweak")
			}
		default:
			return nil, matrix.InvalidParam("An action is neither a text nor an object")
		}
	}
	return in, nil
}

// place puts a rule where the query says: before or after one of the user's own.
// Without a place, a rule that was there stays where it was, and a new one comes
// first; but .m.rule.master stays before all.
func place(list []pushRule, rule pushRule, q url.Values) ([]pushRule, error) {
	before, after := q.Get("before"), q.Get("after")
	if i := indexRule(list, rule.ID); i >= 0 {
		rule.Enabled = list[i].Enabled
		if before == "" && after == "" {
			list[i] = rule
			return list, nil
		}
		list = slices.Delete(list, i, i+1)
	}
	at := 0
	if len(list) > 0 && list[0].ID == ".m.rule.master" {
		at = 1
	}
	if anchor := before + after; anchor != "" {
		if before != "" {
			anchor = before
		}
		i := indexRule(list, anchor)
		if i < 0 || list[i].Default {
			return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "before/after rule not found: %.80q", anchor)
		}
		at = i
		if before == "" {
			at++
		}
	}
	return slices.Insert(list, at, rule), nil
}

func (a *api) deletePushRule(r *request) (any, error) {
	return a.changePushRules(r, func(p *pushRules) error {
		rule, err := p.rule(r)
		if err != nil {
			return err
		}
		if rule.Default {
			return matrix.InvalidParam("Rules that start with . are the server's")
		}
		list := p.Global.kind(r.PathValue("kind"))
		i := indexRule(*list, rule.ID)
		*list = slices.Delete(*list, i, i+1)
		return nil
	})
}

func (a *api) putPushRuleEnabled(r *request) (any, error) {
	var in struct {
		Enabled *bool `json:"enabled"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Enabled == nil {
		return nil, matrix.MissingParam("No enabled")
	}
	return a.changePushRules(r, func(p *pushRules) error {
		rule, err := p.rule(r)
		if err == nil {
			rule.Enabled = *in.Enabled
		}
		return err
	})
}

func (a *api) putPushRuleActions(r *request) (any, error) {
	var in struct {
		Actions []json.RawMessage `json:"actions"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	checked, err := actions(in.Actions)
	if err != nil {
		return nil, err
	}
	return a.changePushRules(r, func(p *pushRules) error {
		rule, err := p.rule(r)
		if err == nil {
			rule.Actions = checked
		}
		return err
	})
}

func (a *api) getPushers(r *request) (any, error) {
	list, err := a.Store.Pushers(r.Context(), r.user)
	out := []json.RawMessage{}
	for _, p := range list {
		out = append(out, p.JSON)
	}
	return map[string]any{"pushers": out}, err
}

// pusher is what a client gives, and gets back.
type pusher struct {
	AppID      string          `json:"app_id"`
	Key        string          `json:"pushkey"`
	Kind       *string         `json:"kind"`
	AppName    string          `json:"app_display_name"`
	DeviceName string          `json:"device_display_name"`
	ProfileTag string          `json:"profile_tag,omitempty"`
	Lang       string          `json:"lang"`
	Data       json.RawMessage `json:"data"`
}

// postPusher: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3pushersset
func (a *api) postPusher(r *request) (any, error) {
	var in struct {
		pusher
		Append bool `json:"append"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	p := in.pusher
	if p.AppID == "" || p.Key == "" {
		return nil, matrix.MissingParam("No app_id or no pushkey")
	}
	if len(p.AppID) > 64 || len(p.Key) > 512 {
		return nil, matrix.InvalidParam("app_id or pushkey is too long")
	}
	if p.Kind == nil || *p.Kind == "" {
		return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.DeletePusher(tx, r.user, p.AppID, p.Key) })
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		return a.Store.PutPusher(tx, store.Pusher{User: r.user, AppID: p.AppID, Key: p.Key, Device: r.device, JSON: text}, in.Append)
	})
}

func (p *pusher) check() error {
	if *p.Kind != "http" {
		return matrix.InvalidParam("Pushers of kind %.40q are not supported", *p.Kind)
	}
	if p.AppName == "" || p.DeviceName == "" || p.Lang == "" || isNull(p.Data) {
		return matrix.MissingParam("app_display_name, device_display_name, lang and data are needed")
	}
	var data struct {
		URL string `json:"url"`
	}
	if err := decodeJSON(p.Data, &data); err != nil {
		return err
	}
	if u, err := url.Parse(data.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "/_matrix/push/v1/notify" {
		return matrix.InvalidParam("data.url must be https://…/_matrix/push/v1/notify")
	}
	return nil
}

// getNotifications is empty: we keep no list of what was notified.
func (a *api) getNotifications(*request) (any, error) {
	return map[string]any{"notifications": []any{}}, nil
}
