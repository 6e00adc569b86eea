package appservice

import (
	"crypto/rand"
	"fmt"
	"io"
	"regexp"

	"go.yaml.in/yaml/v3"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Registration is what the service and the homeserver agree on.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#registration
type Registration = matrix.Registration

// Namespaces are the users, aliases and rooms a service cares for.
type Namespaces = matrix.Namespaces

// Namespace is one of them.
type Namespace = matrix.Namespace

// NewRegistration makes one with new tokens that asks for EDUs too and is not rate
// limited. Its namespaces are empty lists.
func NewRegistration(id, url, senderLocalpart string) *Registration {
	no := false
	return &Registration{
		ID: id, URL: url, SenderLocalpart: senderLocalpart,
		ASToken: rand.Text() + rand.Text(), HSToken: rand.Text() + rand.Text(),
		RateLimited: &no, ReceiveEphemeral: true, UnstableReceiveEphemeral: true,
		Namespaces: Namespaces{Users: []Namespace{}, Aliases: []Namespace{}, Rooms: []Namespace{}},
	}
}

// UserNamespace is exclusively all users of the server whose localpart starts with
// a prefix.
func UserNamespace(prefix, server string) Namespace { return prefixed("@", prefix, server) }

// AliasNamespace is UserNamespace for room aliases.
func AliasNamespace(prefix, server string) Namespace { return prefixed("#", prefix, server) }

func prefixed(sigil, prefix, server string) Namespace {
	return Namespace{Exclusive: true, Regex: sigil + regexp.QuoteMeta(prefix) + ".*:" + regexp.QuoteMeta(server)}
}

// WriteYAML prints a registration as the file that homeservers read.
func WriteYAML(w io.Writer, r *Registration) error {
	enc := yaml.NewEncoder(w)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write registration: %w", err)
	}
	return enc.Close()
}

// ReadYAML reads and checks a registration. Keys it does not know are left out.
func ReadYAML(r io.Reader) (*Registration, error) {
	var out Registration
	if err := yaml.NewDecoder(r).Decode(&out); err != nil {
		return nil, fmt.Errorf("read registration: %w", err)
	}
	if err := out.Validate(); err != nil {
		return nil, err
	}
	return &out, nil
}
