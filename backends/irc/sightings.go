package irc

import (
	"context"
	"sync"
	"time"
)

// sightings are what the bot saw our accounts say and leave. They tell whether a
// message arrived whose sender's connection ended before the network confirmed it.
type sightings struct {
	mu      sync.Mutex
	changed chan struct{}  // closed and replaced at each change; guarded by mu
	seq     int            // number of the last sighting; guarded by mu
	list    []sighting     // the latest, oldest first; guarded by mu
	since   map[string]int // folded channels that the bot is in, by seq when it came; guarded by mu
}

type sighting struct {
	seq        int
	nick, chat string // folded
	text       string
	quit       bool // chat and text are ""
	split      bool // lost in a netsplit
}

// maxSightings bounds the list.
const maxSightings = 512

func newSightings() *sightings {
	return &sightings{changed: make(chan struct{}), since: map[string]int{}}
}

func (s *sightings) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sightings) add(x sighting) {
	s.update(func() {
		s.seq++
		x.seq = s.seq
		if len(s.list) == maxSightings {
			s.list = append(s.list[:0], s.list[maxSightings/2:]...)
		}
		s.list = append(s.list, x)
	})
}

func (s *sightings) message(nick, chat, text string) {
	s.add(sighting{nick: nick, chat: chat, text: text})
}

func (s *sightings) quit(nick string, split bool) {
	s.add(sighting{nick: nick, quit: true, split: split})
}

// renamed makes what was said under the old nick count for the new one.
func (s *sightings) renamed(was, now string) {
	s.update(func() {
		for i := range s.list {
			if s.list[i].nick == was && !s.list[i].quit {
				s.list[i].nick = now
			}
		}
	})
}

func (s *sightings) joined(chat string) {
	s.update(func() {
		if _, in := s.since[chat]; !in {
			s.since[chat] = s.seq
		}
	})
}

func (s *sightings) left(chat string) {
	s.update(func() { delete(s.since, chat) })
}

// lost is called when the bot's connection has ended.
func (s *sightings) lost() {
	s.update(func() { clear(s.since); s.list = nil })
}

// now returns the number of the last sighting.
func (s *sightings) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq
}

// verdict on a message.
type verdict int

const (
	unknown verdict = iota
	arrived
	absent
)

// sightingPatience is how long the network may take to tell the bot.
const sightingPatience = 15 * time.Second

// trace is what is looked for: lines that nick sent to chat after the sighting sent,
// through a connection that began at the sighting began. All names are folded.
type trace struct {
	nick, chat  string
	lines       []string
	began, sent int
}

// find waits until it is clear whether the lines arrived: all were seen, or the nick
// was seen to leave before any.
func (s *sightings) find(ctx context.Context, tr trace) verdict {
	ctx, cancel := context.WithTimeout(ctx, sightingPatience)
	defer cancel()
	for {
		s.mu.Lock()
		v, final := s.judge(tr)
		changed := s.changed
		s.mu.Unlock()
		if final {
			return v
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return unknown
		}
	}
}

// judge is final if no later sighting can change it.
func (s *sightings) judge(tr trace) (v verdict, final bool) {
	if since, in := s.since[tr.chat]; !in || since > tr.sent {
		return unknown, true
	}
	if len(s.list) > 0 && s.list[0].seq > tr.sent+1 {
		return unknown, true // some have been forgotten
	}
	seen := 0
	for _, x := range s.list {
		switch {
		case x.seq <= tr.began || x.nick != tr.nick:
		case x.quit && (seen > 0 || x.split):
			return unknown, true
		case x.quit:
			return absent, true
		case x.seq > tr.sent && x.chat == tr.chat && x.text == tr.lines[seen]:
			if seen++; seen == len(tr.lines) {
				return arrived, true
			}
		}
	}
	return unknown, false
}
