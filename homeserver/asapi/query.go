package asapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// QueryAlias asks the services whose namespaces an alias lies in whether it should
// be there. The one that says yes has made it.
func (w *Worker) QueryAlias(ctx context.Context, alias matrix.RoomAlias) (bool, error) {
	return w.anyone(func(s *Service) bool { return s.OwnsAlias(alias) },
		func(s *Service) (bool, error) { return w.client.AliasExists(ctx, s, alias) })
}

// QueryUser is QueryAlias for users.
func (w *Worker) QueryUser(ctx context.Context, user matrix.UserID) (bool, error) {
	return w.anyone(func(s *Service) bool { return matches(s.users, string(user)) },
		func(s *Service) (bool, error) { return w.client.UserExists(ctx, s, user) })
}

// anyone reports whether one of the services concerned says yes. An error is that
// of a service that could not be asked, if no other says yes.
func (w *Worker) anyone(concerned func(*Service) bool, ask func(*Service) (bool, error)) (bool, error) {
	var failed error
	for _, s := range w.Registry.All() {
		if s.Registration.URL == "" || !concerned(s) {
			continue
		}
		ok, err := ask(s)
		if ok {
			return true, nil
		}
		failed = errors.Join(failed, err)
	}
	return false, failed
}

// Ping has a service say that it hears us, and returns how long that took, in
// milliseconds. What it has not taken so far is sent to it at once.
//
// The error is a [*matrix.Error] as the specification has them for
// https://spec.matrix.org/v1.19/application-service-api/#post_matrixclientv1appserviceappserviceidping
func (w *Worker) Ping(ctx context.Context, s *Service, txnID string) (int64, error) {
	if s.Registration.URL == "" {
		return 0, matrix.Errorf(http.StatusBadRequest, matrix.CodeURLNotSet, "The application service has no url")
	}
	start := time.Now()
	err := w.client.Ping(ctx, s, txnID)
	status, refused := errors.AsType[*StatusError](err)
	timeout, network := errors.AsType[net.Error](err)
	switch {
	case err == nil:
		w.retryNow(s)
		return time.Since(start).Milliseconds(), nil
	case refused:
		return 0, matrix.Errorf(http.StatusBadGateway, matrix.CodeBadStatus, "The application service answered %d", status.Status).
			With("status", status.Status).With("body", status.Body)
	case network && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded):
		return 0, matrix.Errorf(http.StatusGatewayTimeout, matrix.CodeConnectionTimeout, "The application service did not answer in time")
	}
	w.Log.Warn("application service cannot be reached", "service", s.Registration.ID, "err", err)
	return 0, matrix.Errorf(http.StatusBadGateway, matrix.CodeConnectionFailed, "The application service cannot be reached")
}

// ThirdParty asks all services that know a protocol ("" for all) and joins their
// answers: what is found for kind "location" and "user", one description from each
// service for kind "protocol". A service that does not answer counts as one that
// knows nothing.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#third-party-networks
func (w *Worker) ThirdParty(ctx context.Context, kind, protocol string, query url.Values) ([]json.RawMessage, error) {
	what := kind
	if protocol != "" {
		what += "/" + url.PathEscape(protocol)
	}
	var out []json.RawMessage
	for _, s := range w.Registry.All() {
		if p := s.Registration.Protocols; s.Registration.URL == "" || len(p) == 0 || protocol != "" && !slices.Contains(p, protocol) {
			continue
		}
		var found []json.RawMessage
		var err error
		if kind == "protocol" {
			found = make([]json.RawMessage, 1)
			err = w.client.ThirdParty(ctx, s, what, query, &found[0])
		} else {
			err = w.client.ThirdParty(ctx, s, what, query, &found)
		}
		if err == nil {
			out = append(out, found...)
		} else if e, ok := errors.AsType[*StatusError](err); !ok || e.Status != http.StatusNotFound {
			w.Log.Warn("application service does not answer about its networks", "service", s.Registration.ID, "kind", kind, "err", err)
		}
	}
	return out, nil
}
