package puppeting

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// TestEachKindFromMatrix shows what a network that can do everything, and one that
// can do nothing, are told of each kind of event.
func TestEachKindFromMatrix(t *testing.T) {
	rich, plain := newFake("rich", everything), newFake("plain", backends.Capabilities{Direct: true})
	w := newWorld(t, rich, plain)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "rich", "#go")
	link(t, w, alice, room, "plain", "#plain")
	alice.Say(room, "original")
	original := rich.hears(t, "original")
	plain.hears(t, "original")
	target, out := original.ID, backends.MessageID("out:"+original.ID)
	mxc := alice.OK("POST", "/_matrix/media/v3/upload?filename=a.png", []byte("\x89PNG…")).Str("content_uri")

	text := func(s string) map[string]any { return map[string]any{"msgtype": "m.text", "body": s} }
	with := func(c map[string]any, k string, v any) map[string]any { c[k] = v; return c }
	html := func(body, formatted string) map[string]any {
		return with(with(text(body), "format", formatHTML), "formatted_body", formatted)
	}
	doc := func(nodes ...richtext.Node) richtext.Doc { return nodes }
	txt := func(s string) richtext.Node { return richtext.Node{Kind: richtext.Text, Text: s} }
	alicesFirst := backends.User{Account: "@alice:test", Username: "alice", Domain: "test"}
	quote := &backends.Quote{ID: out, Sender: alicesFirst, Text: "original"}

	tests := []struct {
		name        string
		typ         string
		content     map[string]any
		rich, plain backends.Body
	}{
		{"text", "", text("a\nb"),
			&backends.Message{Text: richtext.Plain("a\nb")}, &backends.Message{Text: richtext.Plain("a\nb")}},
		{"emote", "", with(text("waves"), "msgtype", "m.emote"),
			&backends.Message{Kind: backends.Emote, Text: richtext.Plain("waves")}, &backends.Message{Kind: backends.Emote, Text: richtext.Plain("waves")}},
		{"notice", "", with(text("beep"), "msgtype", "m.notice"),
			&backends.Message{Kind: backends.Notice, Text: richtext.Plain("beep")}, &backends.Message{Kind: backends.Notice, Text: richtext.Plain("beep")}},
		{"formatting", "", html("a b", "a <b>b</b>"),
			&backends.Message{Text: doc(txt("a "), richtext.Node{Kind: richtext.Bold, Children: doc(txt("b"))})}, &backends.Message{Text: richtext.Plain("a b")}},
		{"mention of a ghost", "", html("Bob: hi", `<a href="https://matrix.to/#/@rich__bob:test">Bob</a>: hi`),
			&backends.Message{Text: doc(richtext.Node{Kind: richtext.Mention, User: "Bob", Children: doc(txt("Bob"))}, txt(": hi"))}, &backends.Message{Text: richtext.Plain("Bob: hi")}},
		{"mention of a user", "", html("Alice: hi", `<a href="https://matrix.to/#/@alice:test">Alice</a>: hi`),
			&backends.Message{Text: doc(richtext.Node{Kind: richtext.Mention, User: "@alice:test", Children: doc(txt("Alice"))}, txt(": hi"))}, &backends.Message{Text: richtext.Plain("Alice: hi")}},
		{"mention of all", "", with(text("@room up"), "m.mentions", map[string]any{"room": true}),
			&backends.Message{Text: doc(richtext.Node{Kind: richtext.Mention, User: "@room", Children: doc(txt("@room"))}, txt(" up"))}, &backends.Message{Text: richtext.Plain("@room up")}},
		{"reply", "", with(text("yes"), "m.relates_to", map[string]any{"m.in_reply_to": map[string]any{"event_id": target}}),
			&backends.Message{Text: richtext.Plain("yes"), ReplyTo: quote}, &backends.Message{Text: richtext.Plain("> <alice> original\nyes")}},
		{"reply with an old fallback", "", with(html("> <@alice:test> original\n\nyes", "<mx-reply><blockquote>original</blockquote></mx-reply>yes"), "m.relates_to", map[string]any{"m.in_reply_to": map[string]any{"event_id": target}}),
			&backends.Message{Text: richtext.Plain("yes"), ReplyTo: quote}, &backends.Message{Text: richtext.Plain("> <alice> original\nyes")}},
		{"thread", "", with(text("in it"), "m.relates_to", map[string]any{"rel_type": "m.thread", "event_id": target, "is_falling_back": true, "m.in_reply_to": map[string]any{"event_id": target}}),
			&backends.Message{Text: richtext.Plain("in it"), Thread: out}, &backends.Message{Text: richtext.Plain("in it")}},
		{"edit", "", with(with(text("* new"), "m.new_content", text("new")), "m.relates_to", map[string]any{"rel_type": "m.replace", "event_id": target}),
			&backends.Edit{Target: out, New: backends.Message{Text: richtext.Plain("new")}, Old: "original"}, &backends.Message{Text: richtext.Plain("* new")}},
		{"reaction", "m.reaction", map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": target, "key": "👍"}},
			&backends.Reaction{Target: out, Key: "👍", Quote: quote}, &backends.Message{Kind: backends.Emote, Text: richtext.Plain("reacted with 👍 to “original”")}},
		{"image", "", with(with(with(text("a.png"), "msgtype", "m.image"), "url", mxc), "info", map[string]any{"mimetype": "image/png", "size": 8, "w": 3, "h": 4}),
			&backends.Message{Files: []backends.File{{URL: "LINK", Name: "a.png", MediaType: "image/png", Size: 8, Width: 3, Height: 4}}}, &backends.Message{Text: richtext.Plain("a.png: LINK")}},
		{"file with a caption", "", with(with(with(text("look"), "msgtype", "m.file"), "url", mxc), "filename", "a.pdf"),
			&backends.Message{Text: richtext.Plain("look"), Files: []backends.File{{URL: "LINK", Name: "a.pdf"}}}, &backends.Message{Text: richtext.Plain("look\na.pdf: LINK")}},
		{"audio", "", with(with(with(text("a.ogg"), "msgtype", "m.audio"), "url", mxc), "info", map[string]any{"duration": 1500}),
			&backends.Message{Files: []backends.File{{URL: "LINK", Name: "a.ogg", Duration: 1500 * time.Millisecond}}}, &backends.Message{Text: richtext.Plain("a.ogg: LINK")}},
		{"video", "", with(with(text("a.mp4"), "msgtype", "m.video"), "url", mxc),
			&backends.Message{Files: []backends.File{{URL: "LINK", Name: "a.mp4"}}}, &backends.Message{Text: richtext.Plain("a.mp4: LINK")}},
		{"sticker", "m.sticker", map[string]any{"body": "cat", "url": mxc, "info": map[string]any{}},
			&backends.Message{Files: []backends.File{{URL: "LINK", Name: "cat"}}}, &backends.Message{Text: richtext.Plain("cat: LINK")}},
		{"location", "", with(with(text("here"), "msgtype", "m.location"), "geo_uri", "geo:1,2"),
			&backends.Message{Text: doc(txt("here"), richtext.Node{Kind: richtext.Break}, richtext.Node{Kind: richtext.Link, URL: "geo:1,2", Children: doc(txt("geo:1,2"))})}, &backends.Message{Text: richtext.Plain("here\ngeo:1,2")}},
		{"an unknown kind", "", with(text("psst"), "msgtype", "org.example.whisper"),
			&backends.Message{Text: richtext.Plain("psst")}, &backends.Message{Text: richtext.Plain("psst")}},
		{"control characters", "", text("a\x00\r\nb\x1b[0m"),
			&backends.Message{Text: richtext.Plain("a\nb[0m")}, &backends.Message{Text: richtext.Plain("a\nb[0m")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			typ := tt.typ
			if typ == "" {
				typ = "m.room.message"
			}
			id := w.send(alice, room, typ, tt.content)
			for _, side := range []struct {
				n    *fakeNet
				want backends.Body
			}{{rich, tt.rich}, {plain, tt.plain}} {
				cmd := side.n.await(t, tt.name, func(c *backends.Command) bool { return c.ID == id })
				if got := withoutLinks(cmd.Body); !reflect.DeepEqual(got, withoutLinks(side.want)) {
					t.Errorf("%s got %s\nwant %s", side.n.name, show(got), show(side.want))
				}
			}
		})
	}
}

// withoutLinks replaces what changes from run to run, and merges what means the same.
func withoutLinks(body backends.Body) backends.Body {
	m, ok := body.(*backends.Message)
	if !ok {
		return body
	}
	c := *m
	c.Files = nil
	for _, f := range m.Files {
		if strings.Contains(f.URL, mediaPath) {
			f.URL = "LINK"
		}
		c.Files = append(c.Files, f)
	}
	for i, n := range m.Text {
		if at := strings.Index(n.Text, "http://127.0.0.1"); at >= 0 {
			m.Text[i].Text = n.Text[:at] + "LINK"
		}
	}
	c.Text = m.Text.Normalise()
	return &c
}

func show(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// link has the bot come to a room and link it.
func link(t *testing.T, w *world, u *hstest.User, room matrix.RoomID, network, chat string) {
	t.Helper()
	u.Do("POST", hstest.Path(room)+"/invite", map[string]any{"user_id": "@gjallar:test"})
	w.until("the bot", func() bool { return slices.Contains(w.members(u, room), "@gjallar:test") }, func() string { return strings.Join(w.members(u, room), " ") })
	w.bridge.o.Admins = []matrix.UserID{u.ID}
	u.Say(room, "!gjallar link "+network+" "+chat)
	w.see(u, room, "answer to link", func(e *event) bool {
		return strings.HasPrefix(e.body(), "This room is now connected with "+chat)
	})
}

func TestRedactionsFromMatrix(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	id := alice.Say(room, "oops")
	irc.hears(t, "oops")
	reaction := w.send(alice, room, "m.reaction", map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": id, "key": "x"}})
	for _, step := range []struct {
		redact string
		want   backends.Body
	}{
		{reaction, &backends.Reaction{Target: backends.MessageID("out:" + id), Key: "x", Removed: true}},
		{string(id), &backends.Removal{Target: backends.MessageID("out:" + id), Reason: "typo"}},
	} {
		out := alice.OK("PUT", hstest.Path(room)+"/redact/"+step.redact+"/"+step.redact[1:], map[string]any{"reason": "typo"})
		cmd := irc.await(t, "redaction", func(c *backends.Command) bool { return c.ID == out.Str("event_id") })
		if !reflect.DeepEqual(cmd.Body, step.want) {
			t.Errorf("got %T %s, want %s", cmd.Body, show(cmd.Body), show(step.want))
		}
	}
}

func TestEachKindFromRemote(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	bob := backends.User{ID: "bob", Name: "Bob"}
	original := irc.saysAs(t, "#go", "bob", "original", "m1").ID
	alice.Say(room, "mine")
	mine := irc.hears(t, "mine")

	file := func() backends.File {
		f, err := irc.currentHost().Media().Upload(t.Context(), backends.File{Name: "a.png", MediaType: "image/png", Width: 3}, strings.NewReader("pixels"))
		if err != nil || f.Size != 6 || f.URL == "" {
			t.Fatalf("upload: %+v, %v", f, err)
		}
		return f
	}
	no := map[string]any{}
	tests := []struct {
		name string
		body backends.Body
		typ  string
		want map[string]any // what the content holds at least
	}{
		{"text", &backends.Message{Text: richtext.Plain("a\nb")}, "", map[string]any{"msgtype": "m.text", "body": "a\nb", "format": nil, "m.mentions": no}},
		{"emote", &backends.Message{Kind: backends.Emote, Text: richtext.Plain("waves")}, "", map[string]any{"msgtype": "m.emote", "body": "waves"}},
		{"notice", &backends.Message{Kind: backends.Notice, Text: richtext.Plain("beep")}, "", map[string]any{"msgtype": "m.notice", "body": "beep"}},
		{"formatting", &backends.Message{Text: richtext.Doc{{Kind: richtext.Bold, Children: richtext.Plain("b<")}}}, "", map[string]any{"body": "b<", "format": formatHTML, "formatted_body": "<strong>b&lt;</strong>"}},
		{"mention of a user", &backends.Message{Text: richtext.Doc{{Kind: richtext.Mention, User: "@alice:test", Children: richtext.Plain("alice")}}}, "",
			map[string]any{"formatted_body": `<a href="https://matrix.to/#/@alice:test">alice</a>`, "m.mentions": map[string]any{"user_ids": []any{"@alice:test"}}}},
		{"mention of a ghost", &backends.Message{Text: richtext.Doc{{Kind: richtext.Mention, User: "carol", Children: richtext.Plain("carol")}}}, "",
			map[string]any{"m.mentions": map[string]any{"user_ids": []any{"@irc_carol:test"}}}},
		{"reply to a ghost", &backends.Message{Text: richtext.Plain("yes"), ReplyTo: &backends.Quote{ID: "m1"}}, "",
			map[string]any{"body": "yes", "m.relates_to": map[string]any{"m.in_reply_to": map[string]any{"event_id": string(original)}}}},
		{"reply to a user", &backends.Message{Text: richtext.Plain("yes"), ReplyTo: &backends.Quote{ID: backends.MessageID("out:" + mine.ID)}}, "",
			map[string]any{"m.relates_to": map[string]any{"m.in_reply_to": map[string]any{"event_id": mine.ID}}}},
		{"reply to what we have not", &backends.Message{Text: richtext.Plain("yes"), ReplyTo: &backends.Quote{ID: "zzz", Text: "old", Sender: backends.User{Name: "Dan"}}}, "",
			map[string]any{"body": "> <Dan> old\nyes", "formatted_body": "<blockquote>&lt;Dan&gt; old</blockquote>yes"}},
		{"thread", &backends.Message{Text: richtext.Plain("in it"), Thread: "m1"}, "",
			map[string]any{"m.relates_to": map[string]any{"rel_type": "m.thread", "event_id": string(original), "is_falling_back": true, "m.in_reply_to": map[string]any{"event_id": string(original)}}}},
		{"edit", &backends.Edit{Target: "m1", New: backends.Message{Text: richtext.Plain("new")}}, "",
			map[string]any{"body": "* new", "m.new_content": map[string]any{"msgtype": "m.text", "body": "new", "m.mentions": no}, "m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": string(original)}}},
		{"edit of what we have not", &backends.Edit{Target: "zzz", New: backends.Message{Text: richtext.Plain("new")}}, "", map[string]any{"body": "* new", "m.relates_to": nil}},
		{"reaction", &backends.Reaction{Target: "m1", Key: "👍"}, "m.reaction",
			map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": string(original), "key": "👍"}}},
		{"file", &backends.Message{Files: []backends.File{file()}}, "",
			map[string]any{"msgtype": "m.image", "body": "a.png", "info": map[string]any{"mimetype": "image/png", "size": 6.0, "w": 3.0}}},
		{"a file that cannot be had", &backends.Message{Files: []backends.File{{URL: "http://127.0.0.1:1/x.png", Name: "x.png"}}}, "",
			map[string]any{"msgtype": "m.text", "body": "x.png: http://127.0.0.1:1/x.png"}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
			r := irc.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#go"}, Sender: bob, ID: backends.MessageID("t" + string(rune('a'+i))), Time: at, Body: tt.body})
			if r.Err != nil || r.ID == "" {
				t.Fatalf("receipt %+v", r)
			}
			e := w.see(alice, room, tt.name, func(e *event) bool { return e.ID == string(r.ID) })
			if e.Sender != "@irc_bob:test" || e.TS != at.UnixMilli() || tt.typ != "" && e.Type != tt.typ {
				t.Errorf("event %+v", e)
			}
			for k, want := range tt.want {
				if got := e.Content[k]; !reflect.DeepEqual(got, want) {
					t.Errorf("%s is %s, want %s", k, show(got), show(want))
				}
			}
		})
	}
	t.Run("removal", func(t *testing.T) {
		for _, body := range []backends.Body{&backends.Reaction{Target: "m1", Key: "👍", Removed: true}, &backends.Removal{Target: "m1"}} {
			if r := irc.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#go"}, Sender: bob, Body: body}); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		left := 0
		for _, e := range w.timeline(alice, room) {
			if (e.ID == string(original) || e.Type == "m.reaction") && len(e.Content) > 0 {
				left++
			}
		}
		if left > 0 {
			t.Errorf("%d events were not redacted", left)
		}
	})
}

func TestARemovalIsToldWithoutWhatWasRemoved(t *testing.T) {
	tests := []struct {
		name string
		can  bool
		in   backends.Removal
		want backends.Body
	}{
		{"natively", true, backends.Removal{Target: "m1", Reason: "typo"}, &backends.Removal{Target: "m1", Reason: "typo"}},
		{"as an emote", false, backends.Removal{Target: "m1"}, &backends.Message{Kind: backends.Emote, Text: richtext.Plain("removed a message")}},
		{"with its reason", false, backends.Removal{Target: "m1", Reason: "typo"}, &backends.Message{Kind: backends.Emote, Text: richtext.Plain("removed a message: typo")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := degrade(&tt.in, backends.Capabilities{Removals: tt.can}); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%s, want %s", show(got), show(tt.want))
			}
		})
	}
}

func TestAFallbackPutsTheMarkIntoTheFirstParagraph(t *testing.T) {
	m := prefixed("* ", &backends.Message{Text: richtext.Doc{{Kind: richtext.Paragraph, Children: richtext.Plain("a")}, {Kind: richtext.Paragraph, Children: richtext.Plain("b")}}})
	if got := m.Text.Plain(); got != "* a\nb" {
		t.Errorf("%q", got)
	}
}
