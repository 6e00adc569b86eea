package wire

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// bodies has one of each body that the contract knows.
var bodies = []backends.Body{
	&backends.Message{}, &backends.Edit{}, &backends.Reaction{}, &backends.Removal{}, &backends.Typing{},
	&backends.Read{}, &backends.Presence{}, &backends.Member{}, &backends.Members{}, &backends.RoleChange{},
	&backends.Profile{}, &backends.ChatInfo{}, &backends.NetworkState{}, &backends.AccountState{}, &backends.Gap{},
}

func TestBodiesAreAllThere(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../backends/body.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared, known []string
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "body" {
			declared = append(declared, fmt.Sprint(f.Recv.List[0].Type.(*ast.StarExpr).X))
		}
	}
	for _, b := range bodies {
		known = append(known, reflect.TypeOf(b).Elem().Name())
	}
	slices.Sort(declared)
	slices.Sort(known)
	if !slices.Equal(declared, known) {
		t.Errorf("the contract has the bodies %v, this test knows %v", declared, known)
	}
}

// words are the values of enumerations; of the others any value will do.
var words = map[reflect.Type][]any{
	reflect.TypeFor[backends.Outcome]():       {backends.Delivered, backends.Retry, backends.Rejected, backends.Unsupported, backends.Uncertain},
	reflect.TypeFor[backends.MessageKind]():   {backends.Text, backends.Emote, backends.Notice},
	reflect.TypeFor[backends.PresenceState](): {backends.Online, backends.Away, backends.Offline},
	reflect.TypeFor[backends.NetworkPhase]():  {backends.Connecting, backends.Ready, backends.Disconnected, backends.Failed},
	reflect.TypeFor[backends.Action](): {backends.Action(""), backends.Joined, backends.Left, backends.Kicked,
		backends.Banned, backends.Unbanned, backends.Invited, backends.Knocked},
	reflect.TypeFor[backends.Role](): {backends.NoRole, backends.Visitor, backends.Participant, backends.Voice,
		backends.HalfOp, backends.Moderator, backends.Admin, backends.Owner},
	reflect.TypeFor[backends.RefusalCode](): {backends.RefusedNotFound, backends.RefusedForbidden,
		backends.RefusedBanned, backends.RefusedInviteOnly, backends.RefusedFull, backends.RefusedPassword,
		backends.RefusedConflict, backends.RefusedTooLarge, backends.RefusedUnsupported,
		backends.RefusedUnavailable, backends.RefusedInvalid, backends.RefusedUnauthorized},
	reflect.TypeFor[richtext.Kind](): {richtext.Text, richtext.Break, richtext.Bold, richtext.Italic,
		richtext.Underline, richtext.Strike, richtext.Code, richtext.Spoiler, richtext.Color, richtext.Link,
		richtext.Mention, richtext.Image, richtext.Paragraph, richtext.Heading, richtext.Quote,
		richtext.CodeBlock, richtext.List, richtext.Item, richtext.Rule},
}

// filler sets every field of a value: all of them, if full, or each with a chance.
type filler struct {
	*rand.Rand
	full bool
}

func (f filler) fill(v reflect.Value, depth int) {
	if known := words[v.Type()]; known != nil {
		v.Set(reflect.ValueOf(known[f.IntN(len(known))]))
		return
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(0, 1+f.Int64N(1<<62)).UTC()))
		return
	}
	if !f.full && v.Kind() != reflect.Struct && f.IntN(4) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i), depth)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem(), depth)
	case reflect.Interface: // backends.Body is the only one
		b := reflect.New(reflect.TypeOf(bodies[f.IntN(len(bodies))]).Elem())
		f.fill(b.Elem(), depth)
		v.Set(b)
	case reflect.Slice:
		if depth == 3 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1+f.IntN(3), 3))
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.String:
		v.SetString([]string{"ä", "💣", "x", "\r\n", "long"}[f.IntN(5)] + fmt.Sprint(f.IntN(1000)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1 + f.Int64N(1<<30))
	case reflect.Uint8: // of a []byte
		v.SetUint(uint64(f.IntN(256)))
	default:
		panic(v.Type().String())
	}
}

// via sends a message over the wire.
func via[M any, PM interface {
	*M
	proto.Message
}](t *testing.T, m PM) PM {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := PM(new(M))
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	return got
}

func try[T any](v T, err error) any {
	if err != nil {
		return err
	}
	return v
}

// trips carry a value of each type of the contract over the wire and back.
var trips = []struct {
	value any
	trip  func(t *testing.T, v any) any
}{
	{backends.Info{}, func(t *testing.T, v any) any { return via(t, PackInfo(v.(backends.Info))).Unpack() }},
	{backends.ChatKey{}, func(t *testing.T, v any) any { return via(t, PackChatKey(v.(backends.ChatKey))).Unpack() }},
	{backends.User{}, func(t *testing.T, v any) any { return via(t, PackUser(v.(backends.User))).Unpack() }},
	{backends.JoinRequest{}, func(t *testing.T, v any) any { return via(t, PackJoin(v.(backends.JoinRequest))).Unpack() }},
	{backends.Event{}, func(t *testing.T, v any) any {
		ev := v.(backends.Event)
		got, err := via(t, PackEvent(&ev)).Unpack()
		if err != nil {
			return err
		}
		return *got
	}},
	{backends.Command{}, func(t *testing.T, v any) any {
		cmd := v.(backends.Command)
		got, err := via(t, PackCommand(&cmd)).Unpack()
		if err != nil {
			return err
		}
		return *got
	}},
	{backends.Result{}, func(t *testing.T, v any) any { return try(via(t, PackResult(7, v.(backends.Result))).Unpack()) }},
	{backends.Receipt{}, func(t *testing.T, v any) any { return via(t, PackReceipt(7, v.(backends.Receipt))).Unpack() }},
	{backends.File{}, func(t *testing.T, v any) any { return try(via(t, PackFile(v.(backends.File))).Unpack()) }},
	{backends.EnterRequest{}, func(t *testing.T, v any) any {
		return try(via(t, PackEnter(v.(backends.EnterRequest))).Unpack())
	}},
	{backends.RoomView{}, func(t *testing.T, v any) any {
		view := v.(backends.RoomView)
		got, err := via(t, PackRoomView(&view)).Unpack()
		if err != nil {
			return err
		}
		return *got
	}},
	{backends.RoomSummary{}, func(t *testing.T, v any) any {
		return try(via(t, PackRoomSummary(v.(backends.RoomSummary))).Unpack())
	}},
	{backends.RoomName{}, func(t *testing.T, v any) any { return via(t, PackRoomName(v.(backends.RoomName))).Unpack() }},
}

func TestEveryFieldSurvives(t *testing.T) {
	for _, trip := range trips {
		t.Run(reflect.TypeOf(trip.value).Name(), func(t *testing.T) {
			for seed := range uint64(200) {
				f := filler{rand.New(rand.NewPCG(seed, 0)), seed%2 == 0}
				v := reflect.New(reflect.TypeOf(trip.value)).Elem()
				f.fill(v, 0)
				want := v.Interface()
				if hasNoBody(want) {
					continue
				}
				if got := trip.trip(t, want); !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d: sent\n%s\ngot\n%s", seed, dump(want), dump(got))
				}
			}
		})
	}
}

// hasNoBody finds the events and commands that the filler left empty.
func hasNoBody(v any) bool {
	switch v := v.(type) {
	case backends.Event:
		return v.Body == nil
	case backends.Command:
		return v.Body == nil
	case backends.RoomView:
		return slices.ContainsFunc(v.History, func(c backends.Command) bool { return c.Body == nil })
	}
	return false
}

func TestEveryBodySurvives(t *testing.T) {
	for _, b := range bodies {
		for seed := range uint64(100) {
			f := filler{rand.New(rand.NewPCG(seed, 1)), seed%2 == 0}
			v := reflect.New(reflect.TypeOf(b).Elem())
			f.fill(v.Elem(), 0)
			ev := &backends.Event{Body: v.Interface().(backends.Body)}
			got, err := via(t, PackEvent(ev)).Unpack()
			if err != nil || !reflect.DeepEqual(got.Body, ev.Body) {
				t.Fatalf("%T, seed %d: %v\nsent\n%s\ngot\n%s", b, seed, err, dump(ev), dump(got))
			}
		}
	}
}

func dump(v any) string { return fmt.Sprintf("%#v", v) }

func nested(depth int) []richtext.Node {
	if depth == 1 {
		return richtext.Plain("deep")
	}
	return richtext.Doc{{Kind: richtext.Bold, Children: nested(depth - 1)}}
}

func TestWhatCannotBeSaidIsMadeSayable(t *testing.T) {
	tests := []struct {
		name     string
		in, want *backends.Event
	}{
		{"a tree of the greatest depth", textEvent(nested(32)), textEvent(nested(32))},
		{"a deeper tree is flattened", textEvent(nested(50)), textEvent(nested(32))},
		{"invalid UTF-8", &backends.Event{ID: "a\xffb", Body: &backends.Typing{}}, &backends.Event{ID: "a\uFFFDb", Body: &backends.Typing{}}},
		{"the epoch is a time", at(time.Unix(0, 0)), at(time.Unix(0, 1))},
		{"a time of next millennium", at(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)), at(maxTime)},
		{"a time of the last", at(time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)), at(minTime)},
		{"no time", at(time.Time{}), at(time.Time{})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := via(t, PackEvent(test.in)).Unpack()
			if err != nil {
				t.Fatal(err)
			}
			if !test.want.Time.IsZero() {
				test.want.Time = test.want.Time.UTC()
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %s, want %s", dump(got), dump(test.want))
			}
		})
	}
}

func textEvent(d richtext.Doc) *backends.Event {
	return &backends.Event{Body: &backends.Message{Text: d}}
}
func at(t time.Time) *backends.Event { return &backends.Event{Time: t, Body: &backends.Typing{}} }

func TestAMisbehavingPeerGetsAnError(t *testing.T) {
	deep := []*Node{{Text: "x"}}
	for range richtext.MaxDepth {
		deep = []*Node{{Kind: Node_BOLD, Children: deep}}
	}
	tests := []struct {
		name string
		body *Body
		want string
	}{
		{"no body", nil, "unknown body"},
		{"an empty body", &Body{}, "unknown body"},
		{"a text too deep", &Body{Is: &Body_Message{&Message{Text: deep}}}, "nested deeper than 32"},
		{"an unknown kind of text", &Body{Is: &Body_Message{&Message{Text: []*Node{{Kind: 33}}}}}, "unknown kind of text 33"},
		{"a kind of text beyond a byte", &Body{Is: &Body_Message{&Message{Text: []*Node{{Kind: 256}}}}}, "unknown kind of text 256"},
		{"an unknown kind of message", &Body{Is: &Body_Message{&Message{Kind: -1}}}, "unknown kind of message -1"},
		{"an unknown role", &Body{Is: &Body_RoleChange{&RoleChange{Role: 99}}}, "unknown role 99"},
		{"an unknown action", &Body{Is: &Body_Member{&Member{Action: "explode"}}}, `unknown action "explode"`},
		{"an unknown phase", &Body{Is: &Body_NetworkState{&NetworkState{Phase: ""}}}, `unknown phase ""`},
		{"a negative size", &Body{Is: &Body_Message{&Message{Files: []*File{{Size: -1}}}}}, "size -1"},
		{"a width beyond reason", &Body{Is: &Body_Message{&Message{Files: []*File{{Width: 1 << 40}}}}}, "width is"},
		{"a negative count", &Body{Is: &Body_ChatInfo{&ChatInfo{Members: -5}}}, "members is -5"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := (&Event{Body: test.body}).Unpack()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %q", err, test.want)
			}
		})
	}
	for _, outcome := range []Outcome{-1, 0, Outcome_OUTCOME_INTERRUPTED, 7} {
		if _, err := (&Result{Outcome: outcome}).Unpack(); err == nil {
			t.Errorf("a backend may not answer %v", outcome)
		}
	}
	if r := (&Refusal{Code: "brand-new", Message: "m"}).Unpack(); r.Code != backends.RefusedUnavailable || r.Message != "m" {
		t.Errorf("a refusal with an unknown code became %+v", r)
	}
}

func TestErrorsSurvive(t *testing.T) {
	refusal := &backends.Refusal{Code: backends.RefusedBanned, Message: "you are banned"}
	got, ok := errors.AsType[*backends.Refusal](Error(Status(fmt.Errorf("join: %w", refusal))))
	if !ok || *got != *refusal {
		t.Errorf("refusal became %v", got)
	}
	huge := &backends.Refusal{Code: backends.RefusedFull, Message: strings.Repeat("é", 10_000)}
	got, _ = errors.AsType[*backends.Refusal](Error(Status(huge)))
	if got == nil || got.Code != huge.Code || len(got.Message) > maxReason+2 || !utf8.ValidString(got.Message) {
		t.Errorf("a huge refusal became one of %d bytes", len(got.Message))
	}
	for _, want := range []error{nil, context.Canceled, context.DeadlineExceeded} {
		if got := Error(Status(want)); got != want {
			t.Errorf("%v became %v", want, got)
		}
	}
	if got := Error(Status(errors.New("disk full"))); got.Error() != "disk full" {
		t.Errorf("got %v", got)
	}
}

func TestNumbersAreThoseOfTheContract(t *testing.T) {
	for _, kind := range words[reflect.TypeFor[richtext.Kind]()] {
		if _, ok := Node_Kind_name[int32(kind.(richtext.Kind))]; !ok {
			t.Errorf("wire.proto has no kind %d", kind)
		}
	}
	for _, pair := range []struct {
		got  int
		want any
	}{
		{int(Outcome_OUTCOME_DELIVERED), backends.Delivered}, {int(Outcome_OUTCOME_RETRY), backends.Retry},
		{int(Outcome_OUTCOME_REJECTED), backends.Rejected}, {int(Outcome_OUTCOME_UNSUPPORTED), backends.Unsupported},
		{int(Outcome_OUTCOME_UNCERTAIN), backends.Uncertain}, {int(Outcome_OUTCOME_INTERRUPTED), backends.Interrupted},
		{int(MessageKind_MESSAGE_KIND_EMOTE), backends.Emote}, {int(MessageKind_MESSAGE_KIND_NOTICE), backends.Notice},
		{int(Role_ROLE_NONE), backends.NoRole}, {int(Role_ROLE_VOICE), backends.Voice},
		{int(Role_ROLE_MODERATOR), backends.Moderator}, {int(Role_ROLE_OWNER), backends.Owner},
	} {
		if want := reflect.ValueOf(pair.want).Int(); int64(pair.got) != want {
			t.Errorf("%T %v is %d on the wire", pair.want, want, pair.got)
		}
	}
}

func FuzzUnpackEvent(f *testing.F) {
	for seed := range uint64(30) {
		var ev backends.Event
		filler{rand.New(rand.NewPCG(seed, 2)), true}.fill(reflect.ValueOf(&ev).Elem(), 0)
		b, err := proto.Marshal(PackEvent(&ev))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w Event
		if proto.Unmarshal(b, &w) != nil {
			return
		}
		ev, err := w.Unpack()
		if err != nil {
			return
		}
		again, err := via(t, PackEvent(ev)).Unpack()
		if err != nil || !reflect.DeepEqual(ev, again) {
			t.Errorf("%s\nbecame %s (%v)", dump(ev), dump(again), err)
		}
	})
}

func FuzzUnpackCommand(f *testing.F) {
	for seed := range uint64(30) {
		var cmd backends.Command
		filler{rand.New(rand.NewPCG(seed, 3)), true}.fill(reflect.ValueOf(&cmd).Elem(), 0)
		b, err := proto.Marshal(PackCommand(&cmd))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w Command
		if proto.Unmarshal(b, &w) != nil {
			return
		}
		cmd, err := w.Unpack()
		if err != nil {
			return
		}
		again, err := via(t, PackCommand(cmd)).Unpack()
		if err != nil || !reflect.DeepEqual(cmd, again) {
			t.Errorf("%s\nbecame %s (%v)", dump(cmd), dump(again), err)
		}
	})
}

func BenchmarkEventOverTheWire(b *testing.B) {
	ev := &backends.Event{
		Chat: backends.ChatKey{Chat: "#go"}, Sender: backends.User{ID: "alice", Name: "alice"}, ID: "m1",
		Time: time.Now(), Body: &backends.Message{Text: richtext.Plain("hello, world")},
	}
	b.ReportAllocs()
	for b.Loop() {
		buf, err := proto.Marshal(PackEvent(ev))
		if err != nil {
			b.Fatal(err)
		}
		var w Event
		if err := proto.Unmarshal(buf, &w); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Unpack(); err != nil {
			b.Fatal(err)
		}
	}
}
