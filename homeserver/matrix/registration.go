package matrix

import (
	"errors"
	"fmt"
	"regexp"
)

// Registration is what an application service and a homeserver agree on.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#registration
type Registration struct {
	ID              string     `yaml:"id" json:"id"`
	URL             string     `yaml:"url" json:"url"` // empty: no traffic is sent
	ASToken         string     `yaml:"as_token" json:"as_token"`
	HSToken         string     `yaml:"hs_token" json:"hs_token"`
	SenderLocalpart string     `yaml:"sender_localpart" json:"sender_localpart"`
	RateLimited     *bool      `yaml:"rate_limited,omitempty" json:"rate_limited,omitempty"`
	Namespaces      Namespaces `yaml:"namespaces" json:"namespaces"`
	Protocols       []string   `yaml:"protocols,omitempty" json:"protocols,omitempty"`
	// ReceiveEphemeral asks for typing, receipts, presence and to-device
	// messages (the spec's receive_ephemeral, MSC2409).
	ReceiveEphemeral bool `yaml:"receive_ephemeral,omitempty" json:"receive_ephemeral,omitempty"`
	// UnstableReceiveEphemeral is the name before it entered the spec.
	UnstableReceiveEphemeral bool `yaml:"de.sorunome.msc2409.push_ephemeral,omitempty" json:"-"`
}

// Namespaces are the users, aliases and rooms an application service cares for.
type Namespaces struct {
	Users   []Namespace `yaml:"users" json:"users"`
	Aliases []Namespace `yaml:"aliases" json:"aliases"`
	Rooms   []Namespace `yaml:"rooms" json:"rooms"`
}

// Namespace is a regular expression over whole identifiers.
type Namespace struct {
	Exclusive bool   `yaml:"exclusive" json:"exclusive"`
	Regex     string `yaml:"regex" json:"regex"`
}

// Compile returns the expression anchored at both ends.
func (n Namespace) Compile() (*regexp.Regexp, error) {
	re, err := regexp.Compile(`^(?:` + n.Regex + `)$`)
	if err != nil {
		return nil, fmt.Errorf("namespace %q: %w", n.Regex, err)
	}
	return re, nil
}

// Validate reports what a homeserver would refuse about r.
func (r *Registration) Validate() error {
	switch {
	case r.ID == "":
		return errors.New("registration has no id")
	case r.ASToken == "" || r.HSToken == "":
		return fmt.Errorf("registration %q lacks as_token or hs_token", r.ID)
	case r.SenderLocalpart == "":
		return fmt.Errorf("registration %q has no sender_localpart", r.ID)
	}
	for _, list := range [][]Namespace{r.Namespaces.Users, r.Namespaces.Aliases, r.Namespaces.Rooms} {
		for _, n := range list {
			if _, err := n.Compile(); err != nil {
				return fmt.Errorf("registration %q: %w", r.ID, err)
			}
		}
	}
	return nil
}
