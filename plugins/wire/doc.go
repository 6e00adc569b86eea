// Package wire is the plugin protocol: the messages and services of wire.proto,
// their conversion from and to the types of package backends, and the queues
// that both ends of a connection need (bounded by chat, in order, in batches).
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative wire.proto

// Limits that both ends keep.
const (
	// MaxMessage is the size of the largest gRPC message, in bytes.
	MaxMessage = 4 << 20
	// StreamWindow and ConnWindow are the flow-control windows of HTTP/2, in bytes:
	// fixed, so that no probing is needed.
	StreamWindow = 1 << 20
	ConnWindow   = 4 << 20
	// MaxItem is the size of the largest command, event, result or receipt, in bytes.
	MaxItem = 3 << 20
	// MaxChunk is the size of the largest piece of a file, in bytes.
	MaxChunk = 256 << 10
	// PerChat is how many commands, or events, of a chat may be unanswered.
	PerChat = 256
	// InFlight is how many may be unanswered in all.
	InFlight = 16 << 10
	// InFlightBytes is how large those are together, at most.
	InFlightBytes = 32 << 20
)
