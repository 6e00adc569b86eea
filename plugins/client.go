package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

// host is the backends.Host of a network in this process.
type host struct {
	server  *server
	rpc     wire.HostClient
	log     *slog.Logger
	gateway bool
}

// Log implements backends.Host.
func (h *host) Log() *slog.Logger { return h.log }

// Store implements backends.Host.
func (h *host) Store() backends.Store { return store{h.rpc} }

// Media implements backends.Host.
func (h *host) Media() backends.Media { return media{h.rpc} }

// Rooms implements backends.Host.
func (h *host) Rooms() backends.Rooms {
	if !h.gateway {
		return nil
	}
	return rooms{h.rpc}
}

// Deliver implements backends.Sink.
func (h *host) Deliver(ctx context.Context, ev *backends.Event, done func(backends.Receipt)) error {
	if done == nil {
		done = func(backends.Receipt) {}
	}
	w := wire.PackEvent(ev)
	if err := h.server.events.Put(ctx, ev.Chat, w, proto.Size(w), done); err != nil {
		return fmt.Errorf("deliver: %w", err)
	}
	return nil
}

type store struct{ rpc wire.HostClient }

// Get implements backends.Store.
func (s store) Get(ctx context.Context, key string) ([]byte, error) {
	v, err := s.rpc.StoreGet(ctx, &wire.StoreKey{Key: key})
	if err != nil || !v.GetFound() {
		return nil, wire.Error(err)
	}
	if v.Value == nil {
		return []byte{}, nil
	}
	return v.Value, nil
}

// Put implements backends.Store.
func (s store) Put(ctx context.Context, key string, value []byte) error {
	_, err := s.rpc.StorePut(ctx, &wire.StorePair{Key: key, Value: value})
	return wire.Error(err)
}

// Delete implements backends.Store.
func (s store) Delete(ctx context.Context, key string) error {
	_, err := s.rpc.StoreDelete(ctx, &wire.StoreKey{Key: key})
	return wire.Error(err)
}

// Scan implements backends.Store.
func (s store) Scan(ctx context.Context, prefix string) (map[string][]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.rpc.StoreScan(ctx, &wire.StoreKey{Key: prefix})
	if err != nil {
		return nil, wire.Error(err)
	}
	pairs := map[string][]byte{}
	for {
		p, err := stream.Recv()
		if err == io.EOF {
			return pairs, nil
		}
		if err != nil {
			return nil, wire.Error(err)
		}
		pairs[p.GetKey()] = p.GetValue()
	}
}

type media struct{ rpc wire.HostClient }

// Upload implements backends.Media.
func (m media) Upload(ctx context.Context, f backends.File, content io.Reader) (backends.File, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream unfinished if content fails
	defer cancel()
	stream, err := m.rpc.Upload(ctx)
	if err != nil {
		return backends.File{}, wire.Error(err)
	}
	err = stream.Send(&wire.UploadChunk{Is: &wire.UploadChunk_File{File: wire.PackFile(f)}})
	for buf := make([]byte, wire.MaxChunk); err == nil; {
		n, readErr := io.ReadFull(content, buf)
		if n > 0 {
			err = stream.Send(&wire.UploadChunk{Is: &wire.UploadChunk_Content{Content: buf[:n]}})
		}
		if readErr == io.EOF || readErr == io.ErrUnexpectedEOF {
			break
		}
		if readErr != nil {
			return backends.File{}, fmt.Errorf("read upload: %w", readErr)
		}
	}
	// An io.EOF from Send means that the host has answered already.
	if err != nil && !errors.Is(err, io.EOF) {
		return backends.File{}, wire.Error(err)
	}
	w, err := stream.CloseAndRecv()
	if err != nil {
		return backends.File{}, wire.Error(err)
	}
	return w.Unpack()
}

type rooms struct{ rpc wire.HostClient }

// Authenticate implements backends.Rooms.
func (r rooms) Authenticate(ctx context.Context, name, password string) (*backends.User, error) {
	return unpackUser(r.rpc.Authenticate(ctx, &wire.AuthenticateRequest{Name: name, Password: password}))
}

func unpackUser(u *wire.User, err error) (*backends.User, error) {
	if err != nil {
		return nil, wire.Error(err)
	}
	return new(u.Unpack()), nil
}

// Enter implements backends.Rooms.
func (r rooms) Enter(ctx context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	v, err := r.rpc.Enter(ctx, wire.PackEnter(req))
	if err != nil {
		return nil, wire.Error(err)
	}
	return v.Unpack()
}

// Exit implements backends.Rooms.
func (r rooms) Exit(ctx context.Context, chat backends.ChatID, user backends.User, reason string) error {
	_, err := r.rpc.Exit(ctx, &wire.ExitRequest{Chat: string(chat), User: wire.PackUser(user), Reason: reason})
	return wire.Error(err)
}

// History implements backends.Rooms.
func (r rooms) History(ctx context.Context, chat backends.ChatID, user backends.User, before time.Time, limit int) ([]backends.Command, error) {
	reply, err := r.rpc.History(ctx, wire.PackHistoryRequest(chat, user, before, limit))
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.UnpackHistory(reply.GetCommands())
}

// List implements backends.Rooms.
func (r rooms) List(ctx context.Context, query string, limit int) ([]backends.RoomSummary, error) {
	reply, err := r.rpc.List(ctx, &wire.ListRequest{Query: query, Limit: int64(limit)})
	if err != nil {
		return nil, wire.Error(err)
	}
	var found []backends.RoomSummary
	for _, w := range reply.GetRooms() {
		s, err := w.Unpack()
		if err != nil {
			return nil, err
		}
		found = append(found, s)
	}
	return found, nil
}

// Peek implements backends.Rooms.
func (r rooms) Peek(ctx context.Context, room backends.RoomName) (*backends.RoomSummary, error) {
	w, err := r.rpc.Peek(ctx, wire.PackRoomName(room))
	if err != nil {
		return nil, wire.Error(err)
	}
	s, err := w.Unpack()
	return &s, err
}

// Whois implements backends.Rooms.
func (r rooms) Whois(ctx context.Context, username, domain string) (*backends.User, error) {
	return unpackUser(r.rpc.Whois(ctx, &wire.WhoisRequest{Username: username, Domain: domain}))
}
