package wire

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gjallar-im/gjallar/backends"
)

// maxReason bounds the text of an error, in bytes: it travels in a header.
const maxReason = 1024

// Status turns an error of the contract into one that gRPC carries: a
// [*backends.Refusal] with all it says, the end of a context as itself, any other
// as its text.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		s := status.New(codes.FailedPrecondition, clip(r.Message))
		if d, err := s.WithDetails(PackRefusal(&backends.Refusal{Code: r.Code, Message: clip(r.Message)})); err == nil {
			return d.Err()
		}
		return s.Err()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, clip(err.Error()))
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, clip(err.Error()))
	}
	return status.Error(codes.Unknown, clip(err.Error()))
}

func clip(s string) string { return text(s[:min(len(s), maxReason)]) }

// Error is the inverse of Status: an error that the other side gave.
func Error(err error) error {
	s, ok := status.FromError(err)
	if !ok || err == nil {
		return err
	}
	for _, d := range s.Details() {
		if r, ok := d.(*Refusal); ok {
			return r.Unpack()
		}
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Canceled:
		return context.Canceled
	case codes.Unimplemented:
		return &backends.Refusal{Code: backends.RefusedUnsupported, Message: "the network cannot do this"}
	case codes.Unknown:
		return errors.New(s.Message())
	}
	return err
}
