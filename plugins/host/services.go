package host

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

// services serves a network's host to its process.
type services struct {
	wire.UnimplementedHostServer
	host backends.Host
}

// StoreGet implements wire.HostServer.
func (s *services) StoreGet(ctx context.Context, req *wire.StoreKey) (*wire.StoreValue, error) {
	value, err := s.host.Store().Get(ctx, req.GetKey())
	return &wire.StoreValue{Found: value != nil, Value: value}, wire.Status(err)
}

// StorePut implements wire.HostServer.
func (s *services) StorePut(ctx context.Context, req *wire.StorePair) (*wire.StoreReply, error) {
	if len(req.GetKey())+len(req.GetValue()) > wire.MaxItem {
		return nil, wire.Status(wire.ErrTooLarge)
	}
	value := req.GetValue()
	if value == nil {
		value = []byte{}
	}
	return &wire.StoreReply{}, wire.Status(s.host.Store().Put(ctx, req.GetKey(), value))
}

// StoreDelete implements wire.HostServer.
func (s *services) StoreDelete(ctx context.Context, req *wire.StoreKey) (*wire.StoreReply, error) {
	return &wire.StoreReply{}, wire.Status(s.host.Store().Delete(ctx, req.GetKey()))
}

// StoreScan implements wire.HostServer.
func (s *services) StoreScan(req *wire.StoreKey, stream grpc.ServerStreamingServer[wire.StorePair]) error {
	pairs, err := s.host.Store().Scan(stream.Context(), req.GetKey())
	if err != nil {
		return wire.Status(err)
	}
	for k, v := range pairs {
		if err := stream.Send(&wire.StorePair{Key: k, Value: v}); err != nil {
			return err
		}
	}
	return nil
}

// Upload implements wire.HostServer.
func (s *services) Upload(stream grpc.ClientStreamingServer[wire.UploadChunk, wire.File]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetFile() == nil {
		return status.Error(codes.InvalidArgument, "an upload starts with the file's description")
	}
	f, err := first.GetFile().Unpack()
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	f, err = s.host.Media().Upload(stream.Context(), f, &upload{stream: stream})
	if err != nil {
		return wire.Status(err)
	}
	return stream.SendAndClose(wire.PackFile(f))
}

// upload reads the content of a file from its stream. It ends with io.EOF only if
// the plugin has sent all.
type upload struct {
	stream grpc.ClientStreamingServer[wire.UploadChunk, wire.File]
	rest   []byte
}

func (u *upload) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		chunk, err := u.stream.Recv()
		if err != nil {
			return 0, err
		}
		if chunk.GetFile() != nil {
			return 0, errors.New("a second file in one upload")
		}
		u.rest = chunk.GetContent()
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

var _ io.Reader = (*upload)(nil)

// rooms returns an error for a network that is no gateway.
func (s *services) rooms() (backends.Rooms, error) {
	if r := s.host.Rooms(); r != nil {
		return r, nil
	}
	return nil, status.Error(codes.Unimplemented, "the network is no gateway")
}

func packUser(u *backends.User, err error) (*wire.User, error) {
	if err != nil {
		return nil, wire.Status(err)
	}
	return wire.PackUser(*u), nil
}

// Authenticate implements wire.HostServer.
func (s *services) Authenticate(ctx context.Context, req *wire.AuthenticateRequest) (*wire.User, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	return packUser(r.Authenticate(ctx, req.GetName(), req.GetPassword()))
}

// Enter implements wire.HostServer. What is too much of the history is left out,
// oldest first.
func (s *services) Enter(ctx context.Context, w *wire.EnterRequest) (*wire.RoomView, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	req, err := w.Unpack()
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	view, err := r.Enter(ctx, req)
	if err != nil {
		return nil, wire.Status(err)
	}
	packed := wire.PackRoomView(view)
	history := packed.History
	packed.History = nil
	packed.History = newest(history, wire.MaxItem-proto.Size(packed))
	return packed, nil
}

// newest returns as many of the last commands as fit into size bytes.
func newest(cmds []*wire.Command, size int) []*wire.Command {
	i := len(cmds)
	for ; i > 0; i-- {
		if size -= proto.Size(cmds[i-1]) + 8; size < 0 {
			break
		}
	}
	return cmds[i:]
}

// Exit implements wire.HostServer.
func (s *services) Exit(ctx context.Context, req *wire.ExitRequest) (*wire.ExitReply, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	err = r.Exit(ctx, backends.ChatID(req.GetChat()), req.GetUser().Unpack(), req.GetReason())
	return &wire.ExitReply{}, wire.Status(err)
}

// History implements wire.HostServer. What is too much is left out, oldest first.
func (s *services) History(ctx context.Context, req *wire.HistoryRequest) (*wire.HistoryReply, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	cmds, err := r.History(ctx, backends.ChatID(req.GetChat()), req.GetUser().Unpack(), req.Time(), int(req.GetLimit()))
	if err != nil {
		return nil, wire.Status(err)
	}
	return &wire.HistoryReply{Commands: newest(wire.PackHistory(cmds), wire.MaxItem)}, nil
}

// List implements wire.HostServer.
func (s *services) List(ctx context.Context, req *wire.ListRequest) (*wire.RoomList, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	found, err := r.List(ctx, req.GetQuery(), int(req.GetLimit()))
	if err != nil {
		return nil, wire.Status(err)
	}
	list := &wire.RoomList{}
	size := 0
	for _, summary := range found {
		w := wire.PackRoomSummary(summary)
		if size += proto.Size(w) + 8; size > wire.MaxItem {
			break
		}
		list.Rooms = append(list.Rooms, w)
	}
	return list, nil
}

// Peek implements wire.HostServer.
func (s *services) Peek(ctx context.Context, req *wire.RoomName) (*wire.RoomSummary, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	summary, err := r.Peek(ctx, req.Unpack())
	if err != nil {
		return nil, wire.Status(err)
	}
	return wire.PackRoomSummary(*summary), nil
}

// Whois implements wire.HostServer.
func (s *services) Whois(ctx context.Context, req *wire.WhoisRequest) (*wire.User, error) {
	r, err := s.rooms()
	if err != nil {
		return nil, err
	}
	return packUser(r.Whois(ctx, req.GetUsername(), req.GetDomain()))
}
