// Package asapi is the homeserver's side of the Application Service API: who is
// registered, what they are interested in, and the transactions and queries that
// are sent to them.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/
package asapi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync/atomic"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// ErrDuplicate says that a registration shares its ID, token or sender with another.
var ErrDuplicate = errors.New("registration clashes with another")

// Service is a registration made ready for matching. It is read-only.
type Service struct {
	Registration matrix.Registration
	Sender       matrix.UserID // the service's own user

	users, aliases, rooms []namespace
}

type namespace struct {
	re        *regexp.Regexp
	exclusive bool
}

// NewService checks and compiles a registration for the server it is used on.
func NewService(r matrix.Registration, server matrix.ServerName) (*Service, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	s := &Service{Registration: r, Sender: matrix.NewUserID(r.SenderLocalpart, server)}
	for _, n := range []struct {
		from []matrix.Namespace
		to   *[]namespace
	}{{r.Namespaces.Users, &s.users}, {r.Namespaces.Aliases, &s.aliases}, {r.Namespaces.Rooms, &s.rooms}} {
		for _, ns := range n.from {
			re, err := ns.Compile()
			if err != nil {
				return nil, err
			}
			*n.to = append(*n.to, namespace{re, ns.Exclusive})
		}
	}
	return s, nil
}

// OwnsUser reports whether the service may act as the user: its sender, or
// anyone in its user namespaces.
func (s *Service) OwnsUser(u matrix.UserID) bool { return u == s.Sender || matches(s.users, string(u)) }

// OwnsAlias reports whether an alias lies in the service's namespaces.
func (s *Service) OwnsAlias(a matrix.RoomAlias) bool { return matches(s.aliases, string(a)) }

// OwnsRoom reports whether a room ID lies in the service's namespaces.
func (s *Service) OwnsRoom(r matrix.RoomID) bool { return matches(s.rooms, string(r)) }

// Ephemeral reports whether the service wants EDUs and to-device messages.
func (s *Service) Ephemeral() bool {
	return s.Registration.ReceiveEphemeral || s.Registration.UnstableReceiveEphemeral
}

func matches(list []namespace, id string) bool {
	return slices.ContainsFunc(list, func(n namespace) bool { return n.re.MatchString(id) })
}

func exclusive(list []namespace, id string) bool {
	return slices.ContainsFunc(list, func(n namespace) bool { return n.exclusive && n.re.MatchString(id) })
}

// Registry is the set of registered services. It may be read and changed from
// any goroutine; a reader sees one consistent set.
type Registry struct {
	server matrix.ServerName
	set    atomic.Pointer[set]
}

type set struct {
	byID    map[string]*Service
	byToken map[[sha256.Size]byte]*Service // keyed by hash, so a lookup's timing tells nothing of a token
	ordered []*Service
}

// NewRegistry returns an empty registry of the server.
func NewRegistry(server matrix.ServerName) *Registry {
	r := &Registry{server: server}
	r.set.Store(newSet(nil))
	return r
}

func newSet(services []*Service) *set {
	s := &set{map[string]*Service{}, map[[sha256.Size]byte]*Service{}, services}
	for _, svc := range services {
		s.byID[svc.Registration.ID] = svc
		s.byToken[sha256.Sum256([]byte(svc.Registration.ASToken))] = svc
	}
	return s
}

// Add registers a service. The error is [ErrDuplicate] if its ID, token or sender
// is taken, or says what is wrong with the registration.
func (r *Registry) Add(reg matrix.Registration) (*Service, error) {
	svc, err := NewService(reg, r.server)
	if err != nil {
		return nil, err
	}
	for {
		old := r.set.Load()
		for _, other := range old.ordered {
			if other.Registration.ID == reg.ID || other.Registration.ASToken == reg.ASToken || other.Sender == svc.Sender {
				return nil, fmt.Errorf("add application service %q: %w (%q)", reg.ID, ErrDuplicate, other.Registration.ID)
			}
		}
		if r.set.CompareAndSwap(old, newSet(append(slices.Clone(old.ordered), svc))) {
			return svc, nil
		}
	}
}

// Remove takes a service out and reports whether it was there.
func (r *Registry) Remove(id string) bool {
	for {
		old := r.set.Load()
		if old.byID[id] == nil {
			return false
		}
		rest := slices.DeleteFunc(slices.Clone(old.ordered), func(s *Service) bool { return s.Registration.ID == id })
		if r.set.CompareAndSwap(old, newSet(rest)) {
			return true
		}
	}
}

// All returns the services in the order they were added. The slice is not to be changed.
func (r *Registry) All() []*Service { return r.set.Load().ordered }

// ByID returns the service registered under an ID.
func (r *Registry) ByID(id string) (*Service, bool) {
	s, ok := r.set.Load().byID[id]
	return s, ok
}

// ByToken returns the service that an as_token belongs to.
func (r *Registry) ByToken(token string) (*Service, bool) {
	s, ok := r.set.Load().byToken[sha256.Sum256([]byte(token))]
	return s, ok
}

// ExclusiveUser returns the service that alone may have this user: its sender, or
// a user in one of its exclusive namespaces.
func (r *Registry) ExclusiveUser(u matrix.UserID) (*Service, bool) {
	return r.find(func(s *Service) bool { return u == s.Sender || exclusive(s.users, string(u)) })
}

// ExclusiveAlias is ExclusiveUser for room aliases.
func (r *Registry) ExclusiveAlias(a matrix.RoomAlias) (*Service, bool) {
	return r.find(func(s *Service) bool { return exclusive(s.aliases, string(a)) })
}

func (r *Registry) find(f func(*Service) bool) (*Service, bool) {
	all := r.All()
	if i := slices.IndexFunc(all, f); i >= 0 {
		return all[i], true
	}
	return nil, false
}
