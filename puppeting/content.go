package puppeting

import (
	"encoding/json"
	"html"
	"mime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	mhtml "github.com/gjallar-im/gjallar/puppeting/html"
)

// Types of events that only clients give a meaning to.
const (
	typeSticker = "m.sticker"
	typeStatus  = "com.beeper.message_send_status"
	typeTyping  = "m.typing"
	typeReceipt = "m.receipt"

	formatHTML  = "org.matrix.custom.html"
	relReplace  = "m.replace"
	relThread   = "m.thread"
	relAnnotate = "m.annotation"
)

// content of m.room.message and m.sticker, as far as we read it.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#mroommessage-msgtypes
type content struct {
	MsgType       string          `json:"msgtype"`
	Body          string          `json:"body"`
	Format        string          `json:"format"`
	FormattedBody string          `json:"formatted_body"`
	FileName      string          `json:"filename"`
	URL           string          `json:"url"`
	GeoURI        string          `json:"geo_uri"`
	File          json.RawMessage `json:"file"` // encrypted
	Info          fileInfo        `json:"info"`
	RelatesTo     relation        `json:"m.relates_to"`
	NewContent    json.RawMessage `json:"m.new_content"`
	Mentions      mentions        `json:"m.mentions"`
}

type fileInfo struct {
	MimeType string  `json:"mimetype"`
	Size     float64 `json:"size"`
	Width    float64 `json:"w"`
	Height   float64 `json:"h"`
	Duration float64 `json:"duration"` // ms
	ThumbURL string  `json:"thumbnail_url"`
}

type relation struct {
	RelType   string         `json:"rel_type"`
	EventID   matrix.EventID `json:"event_id"`
	Key       string         `json:"key"`
	InReplyTo struct {
		EventID matrix.EventID `json:"event_id"`
	} `json:"m.in_reply_to"`
	IsFallingBack bool `json:"is_falling_back"`
}

type mentions struct {
	UserIDs []matrix.UserID `json:"user_ids"`
	Room    bool            `json:"room"`
}

type memberContent struct {
	Membership  string `json:"membership"`
	DisplayName string `json:"displayname"`
	AvatarURL   string `json:"avatar_url"`
	Reason      string `json:"reason"`
	IsDirect    bool   `json:"is_direct"`
}

// unsigned is what we read of it.
type unsigned struct {
	PrevContent json.RawMessage `json:"prev_content"`
}

// decodeInto reads a content leniently: a field of the wrong type is as if it were not there.
func decodeInto[T any](raw json.RawMessage) T {
	var v T
	_ = json.Unmarshal(raw, &v) // the fields that fit are set nevertheless
	return v
}

// kinds of messages by msgtype; others are text.
var kinds = map[string]backends.MessageKind{"m.emote": backends.Emote, "m.notice": backends.Notice, "m.server_notice": backends.Notice}

// fileTypes are msgtypes that carry a file.
var fileTypes = map[string]bool{"m.image": true, "m.file": true, "m.audio": true, "m.video": true}

// textOf is the text of a message, without the fallback of a reply.
func (c *content) textOf(o mhtml.ParseOptions) richtext.Doc {
	var d richtext.Doc
	if c.Format == formatHTML && c.FormattedBody != "" {
		d = mhtml.Parse(c.FormattedBody, o)
	} else {
		body := cleanText(c.Body)
		if c.RelatesTo.InReplyTo.EventID != "" && c.Format != "" {
			body = stripReply(body)
		}
		d = richtext.Plain(body)
	}
	if c.Mentions.Room {
		d = mentionRoom(d)
	}
	return d
}

// stripReply removes the fallback of a reply: the lines that begin with "> ".
//
// Spec: https://spec.matrix.org/v1.13/client-server-api/#fallbacks-for-rich-replies
func stripReply(body string) string {
	if !strings.HasPrefix(body, "> <") && !strings.HasPrefix(body, "> * <") {
		return body
	}
	rest := body
	for strings.HasPrefix(rest, "> ") || strings.HasPrefix(rest, ">\n") {
		_, after, ok := strings.Cut(rest, "\n")
		if !ok {
			return body
		}
		rest = after
	}
	return strings.TrimPrefix(rest, "\n")
}

// mentionRoom makes mentions of the text "@room".
func mentionRoom(d richtext.Doc) richtext.Doc {
	var out richtext.Doc
	for _, n := range d {
		if len(n.Children) > 0 {
			n.Children = mentionRoom(n.Children)
		}
		before, after, ok := strings.Cut(n.Text, richtext.RoomMention)
		if n.Kind != richtext.Text || !ok {
			out = append(out, n)
			continue
		}
		if before != "" {
			out = append(out, richtext.Node{Kind: richtext.Text, Text: before})
		}
		out = append(out, richtext.Node{Kind: richtext.Mention, User: richtext.RoomMention, Children: richtext.Plain(richtext.RoomMention)})
		if after != "" {
			out = append(out, richtext.Node{Kind: richtext.Text, Text: after})
		}
	}
	return out
}

// cleanText makes one kind of line end, and removes other control characters.
func cleanText(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
}

// isFile reports whether the message is a file that can be read.
func (c *content) isFile(eventType string) bool {
	return (fileTypes[c.MsgType] || eventType == typeSticker) && strings.HasPrefix(c.URL, "mxc://")
}

// name of the file; the body is one unless there is a filename, which makes it a caption.
func (c *content) name() string { return firstOf(c.FileName, c.Body) }

func (c *content) caption() bool { return c.FileName != "" && c.FileName != c.Body }

// file of the message, with a link made by url.
func (c *content) file(url func(mxc, name string) string) backends.File {
	name := fileName(c.name())
	mediaType, _, err := mime.ParseMediaType(c.Info.MimeType)
	if err != nil {
		mediaType = ""
	}
	return backends.File{
		URL: url(c.URL, name), Name: name, MediaType: mediaType, Size: int64(c.Info.Size), Width: int(c.Info.Width), Height: int(c.Info.Height),
		Duration: time.Duration(c.Info.Duration) * time.Millisecond, Thumbnail: url(c.Info.ThumbURL, "thumbnail"),
	}
}

// excerptLength is how much of a message is quoted, in characters.
const excerptLength = 120

// excerpt shortens a text to one line fit for quoting.
func excerpt(s string) string {
	s = strings.Join(strings.Fields(cleanText(s)), " ")
	if r := []rune(s); len(r) > excerptLength {
		return string(r[:excerptLength-1]) + "…"
	}
	return s
}

// maxBody is how long a text may be so that its event surely fits, in bytes.
const maxBody = 24 << 10

// textContent is the content for a text; msgtype is added by the caller. What is too
// long loses its formatting, and then its end.
func textContent(d richtext.Doc, o mhtml.RenderOptions) map[string]any {
	body := cleanText(d.Plain())
	c := map[string]any{"body": truncate(body)}
	if len(body) > maxBody || !mhtml.Formatted(d) {
		return c
	}
	if formatted := mhtml.Render(d, o); len(formatted) <= maxBody && formatted != html.EscapeString(body) {
		c["format"], c["formatted_body"] = formatHTML, formatted
	}
	return c
}

func truncate(s string) string {
	if len(s) <= maxBody {
		return s
	}
	return strings.ToValidUTF8(s[:maxBody], "") + "…"
}

// msgTypes by kind of message.
var msgTypes = map[backends.MessageKind]string{backends.Text: "m.text", backends.Emote: "m.emote", backends.Notice: "m.notice"}

// fileMsgType is the msgtype for a media type.
func fileMsgType(mediaType string) string {
	switch kind, _, _ := strings.Cut(mediaType, "/"); kind {
	case "image", "audio", "video":
		return "m." + kind
	}
	return "m.file"
}

// fileContent is the content for a file that the homeserver has.
func fileContent(f backends.File, s stored) map[string]any {
	info := map[string]any{}
	for k, v := range map[string]int64{"size": s.size, "w": int64(f.Width), "h": int64(f.Height), "duration": f.Duration.Milliseconds()} {
		if v > 0 {
			info[k] = v
		}
	}
	if s.mediaType != "" {
		info["mimetype"] = s.mediaType
	}
	name := fileName(s.name)
	return map[string]any{"msgtype": fileMsgType(s.mediaType), "body": name, "filename": name, "url": s.uri, "info": info}
}
