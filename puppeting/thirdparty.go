package puppeting

import (
	"context"
	"net/url"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// thirdParty tells homeservers what networks there are, and how chats and users of
// them are called here.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#third-party-networks
type thirdParty struct{ b *Bridge }

// Fields of locations and users.
const (
	chatField = "chat"
	userField = "user"
)

func (t thirdParty) Protocol(_ context.Context, protocol string) (*appservice.Protocol, error) {
	n := t.b.networks[protocol]
	if n == nil || !n.linkable() {
		return nil, nil
	}
	return &appservice.Protocol{
		UserFields: []string{userField}, LocationFields: []string{chatField},
		FieldTypes: map[string]appservice.FieldType{chatField: {Regexp: ".+", Placeholder: "#chat"}, userField: {Regexp: ".+", Placeholder: "user"}},
		Instances:  []appservice.Instance{{NetworkID: n.name, Desc: n.title, Fields: map[string]string{"network": n.name}}},
	}, nil
}

func (t thirdParty) Locations(_ context.Context, protocol string, fields url.Values) ([]appservice.Location, error) {
	n := t.b.networks[protocol]
	chat := fields.Get(chatField)
	if n == nil || !n.linkable() || chat == "" {
		return nil, nil
	}
	return []appservice.Location{t.location(n, backends.ChatID(chat))}, nil
}

func (t thirdParty) location(n *network, chat backends.ChatID) appservice.Location {
	alias := matrix.RoomAlias("#" + aliasLocalpart(n.name, chat) + ":" + t.b.o.ServerName)
	return appservice.Location{Alias: alias, Protocol: n.name, Fields: map[string]string{chatField: string(chat)}}
}

func (t thirdParty) LocationsOf(_ context.Context, alias matrix.RoomAlias) ([]appservice.Location, error) {
	n, chat := t.b.chatOf(alias)
	if n == nil {
		return nil, nil
	}
	return []appservice.Location{t.location(n, backends.ChatID(chat))}, nil
}

func (t thirdParty) Users(_ context.Context, protocol string, fields url.Values) ([]appservice.ThirdPartyUser, error) {
	n := t.b.networks[protocol]
	id := fields.Get(userField)
	if n == nil || id == "" {
		return nil, nil
	}
	return []appservice.ThirdPartyUser{t.user(n, backends.UserID(id))}, nil
}

func (t thirdParty) user(n *network, id backends.UserID) appservice.ThirdPartyUser {
	return appservice.ThirdPartyUser{UserID: t.b.ghostID(n.name, id), Protocol: n.name, Fields: map[string]string{userField: string(id)}}
}

func (t thirdParty) UsersOf(ctx context.Context, u matrix.UserID) ([]appservice.ThirdPartyUser, error) {
	n := t.b.networkOf(u)
	if n == nil {
		return nil, nil
	}
	id, ok := t.b.remoteOf(ctx, n, u)
	if !ok {
		return nil, nil
	}
	return []appservice.ThirdPartyUser{t.user(n, id)}, nil
}
