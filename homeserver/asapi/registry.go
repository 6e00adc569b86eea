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
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// ErrDuplicate says that a registration shares its ID, token or sender with another.
var ErrDuplicate = errors.New("registration clashes with another")

// Service is a registration made ready for matching. It is read-only.
type Service struct {
	Registration matrix.Registration
	Sender       matrix.UserID // the service's own user

	users, aliases, rooms []namespace
	since                 streams.Token // when it was added
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
	now    atomic.Pointer[func() streams.Token] // nil while nothing happens yet
}

type set struct {
	byID    map[string]*Service
	byToken map[[sha256.Size]byte]*Service // keyed by hash, so a lookup's timing tells nothing of a token
	ordered []*Service

	replaced chan struct{} // closed when another set takes the place of this one
}

// NewRegistry returns an empty registry of the server.
func NewRegistry(server matrix.ServerName) *Registry {
	r := &Registry{server: server}
	r.set.Store(newSet(nil))
	return r
}

func newSet(services []*Service) *set {
	s := &set{map[string]*Service{}, map[[sha256.Size]byte]*Service{}, services, make(chan struct{})}
	for _, svc := range services {
		s.byID[svc.Registration.ID] = svc
		s.byToken[sha256.Sum256([]byte(svc.Registration.ASToken))] = svc
	}
	return s
}

// Add registers a service. The error is [ErrDuplicate] if its ID, token or sender
// is taken, or says what is wrong with the registration.
func (r *Registry) Add(reg matrix.Registration) (*Service, error) { return r.add(reg, "") }

// Replace is Add in the place of the service with the same ID, if there is one: the
// new one goes on where that one was.
func (r *Registry) Replace(reg matrix.Registration) (*Service, error) { return r.add(reg, reg.ID) }

func (r *Registry) add(reg matrix.Registration, instead string) (*Service, error) {
	svc, err := NewService(reg, r.server)
	if err != nil {
		return nil, err
	}
	if now := r.now.Load(); now != nil {
		svc.since = (*now)()
	}
	for {
		old := r.set.Load()
		rest := old.without(instead)
		for _, other := range rest {
			if other.Registration.ID == reg.ID || other.Registration.ASToken == reg.ASToken || other.Sender == svc.Sender {
				return nil, fmt.Errorf("add application service %q: %w (%q)", reg.ID, ErrDuplicate, other.Registration.ID)
			}
		}
		if r.swap(old, append(rest, svc)) {
			return svc, nil
		}
	}
}

// without returns a copy of the services less one.
func (s *set) without(id string) []*Service {
	return slices.DeleteFunc(slices.Clone(s.ordered), func(s *Service) bool { return s.Registration.ID == id })
}

func (r *Registry) swap(old *set, services []*Service) bool {
	ok := r.set.CompareAndSwap(old, newSet(services))
	if ok {
		close(old.replaced)
	}
	return ok
}

// Remove takes a service out and reports whether it was there.
func (r *Registry) Remove(id string) bool {
	for {
		old := r.set.Load()
		if old.byID[id] == nil {
			return false
		}
		if r.swap(old, old.without(id)) {
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
