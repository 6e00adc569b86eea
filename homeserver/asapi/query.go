package asapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
// answers. A service that does not answer counts as one that knows nothing.
//
// kind is "location" or "user", and the answers are what was found; or "protocol",
// and the answer is the protocol's description with the instances of all services;
// with no protocol named there is one answer for each, {name: description}.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#third-party-networks
func (w *Worker) ThirdParty(ctx context.Context, kind, protocol string, query url.Values) ([]json.RawMessage, error) {
	switch {
	case kind == "protocol" && protocol != "":
		return w.protocol(ctx, protocol)
	case kind == "protocol":
		return w.protocols(ctx)
	}
	what := kind
	if protocol != "" {
		what += "/" + url.PathEscape(protocol)
	}
	var out []json.RawMessage
	for _, s := range w.speaking(protocol) {
		var found []json.RawMessage
		if w.ask(ctx, s, what, query, &found) {
			out = append(out, found...)
		}
	}
	return out, nil
}

// speaking returns the services that know a protocol, or any.
func (w *Worker) speaking(protocol string) (out []*Service) {
	for _, s := range w.Registry.All() {
		p := s.Registration.Protocols
		if s.Registration.URL != "" && (protocol == "" && len(p) > 0 || slices.Contains(p, protocol)) {
			out = append(out, s)
		}
	}
	return out
}

func (w *Worker) ask(ctx context.Context, s *Service, what string, query url.Values, out any) bool {
	err := w.client.ThirdParty(ctx, s, what, query, out)
	if e, ok := errors.AsType[*StatusError](err); err != nil && !(ok && e.Status == http.StatusNotFound) {
		kind, _, _ := strings.Cut(what, "/")
		w.Log.Warn("application service does not answer about its networks", "service", s.Registration.ID, "kind", kind, "err", err)
	}
	return err == nil
}

// protocol joins the descriptions of one protocol: the first, with all instances.
func (w *Worker) protocol(ctx context.Context, name string) ([]json.RawMessage, error) {
	var joined map[string]json.RawMessage
	instances := []json.RawMessage{}
	for _, s := range w.speaking(name) {
		var p map[string]json.RawMessage
		if !w.ask(ctx, s, "protocol/"+url.PathEscape(name), nil, &p) || p == nil {
			continue
		}
		if joined == nil {
			joined = p
		}
		var own []json.RawMessage
		if json.Unmarshal(p["instances"], &own) == nil {
			instances = append(instances, own...)
		}
	}
	if joined == nil {
		return nil, nil
	}
	var err error
	if joined["instances"], err = json.Marshal(instances); err != nil {
		return nil, err
	}
	one, err := json.Marshal(joined)
	return []json.RawMessage{one}, err
}

func (w *Worker) protocols(ctx context.Context) (out []json.RawMessage, err error) {
	var names []string
	for _, s := range w.speaking("") {
		for _, p := range s.Registration.Protocols {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
		}
	}
	for _, name := range names {
		p, err := w.protocol(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(p) == 0 {
			continue
		}
		one, err := json.Marshal(map[string]json.RawMessage{name: p[0]})
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}
