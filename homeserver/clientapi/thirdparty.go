package clientapi

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// thirdPartyRoutes: https://spec.matrix.org/v1.19/client-server-api/#third-party-networks,
// and what bridges ask for themselves.
func (a *api) thirdPartyRoutes() []route {
	return []route{
		{"GET", "/v3/thirdparty/protocols", user, (*api).getProtocols},
		{"GET", "/v3/thirdparty/protocol/{protocol}", user, (*api).getProtocol},
		{"GET", "/v3/thirdparty/location", user, thirdParty("location", "alias")},
		{"GET", "/v3/thirdparty/location/{protocol}", user, thirdParty("location", "")},
		{"GET", "/v3/thirdparty/user", user, thirdParty("user", "userid")},
		{"GET", "/v3/thirdparty/user/{protocol}", user, thirdParty("user", "")},
		{"POST", "/v1/appservice/{serviceID}/ping", service, (*api).postPing},
	}
}

// protocols of all application services, without repetitions.
func (a *api) protocols() (out []string) {
	for _, s := range a.Registry.All() {
		out = append(out, s.Registration.Protocols...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// getProtocols leaves out protocols whose services do not answer.
func (a *api) getProtocols(r *request) (any, error) {
	out := map[string]json.RawMessage{}
	for _, name := range a.protocols() {
		if p, err := a.protocol(r, name); err == nil && p != nil {
			out[name] = p
		}
	}
	return out, nil
}

func (a *api) getProtocol(r *request) (any, error) {
	name := r.PathValue("protocol")
	if !slices.Contains(a.protocols(), name) {
		return nil, matrix.NotFound("No bridge here knows this protocol")
	}
	p, err := a.protocol(r, name)
	if err == nil && p == nil {
		err = matrix.NotFound("No bridge of this protocol answers")
	}
	return p, err
}

// protocol is what services say of a protocol: what the first one says, with the
// instances of all. It is nil if none answers.
func (a *api) protocol(r *request, name string) (json.RawMessage, error) {
	if a.ThirdParty == nil {
		return nil, nil
	}
	answers, err := a.ThirdParty(r.Context(), "protocol", name, nil)
	if err != nil {
		return nil, err
	}
	var joined map[string]json.RawMessage
	instances := []json.RawMessage{}
	for _, answer := range answers {
		var fields map[string]json.RawMessage
		if decodeJSON(answer, &fields) != nil || fields == nil {
			continue
		}
		var more []json.RawMessage
		if decodeJSON(fields["instances"], &more) == nil {
			instances = append(instances, more...)
		}
		if joined == nil {
			joined = fields
		}
	}
	if joined == nil {
		return nil, nil
	}
	if joined["instances"], err = json.Marshal(instances); err != nil {
		return nil, err
	}
	return json.Marshal(joined)
}

// thirdParty asks for locations or users: by fields of a protocol, or by the
// parameter that has to be there.
func thirdParty(kind, parameter string) func(*api, *request) (any, error) {
	return func(a *api, r *request) (any, error) {
		query := url.Values{}
		for k, v := range r.URL.Query() {
			if k != "access_token" && k != "user_id" && k != "device_id" {
				query[k] = v
			}
		}
		if parameter != "" && query.Get(parameter) == "" {
			return nil, matrix.MissingParam("No %s", parameter)
		}
		if a.ThirdParty == nil {
			return []json.RawMessage{}, nil
		}
		found, err := a.ThirdParty(r.Context(), kind, r.PathValue("protocol"), query)
		if found == nil {
			found = []json.RawMessage{}
		}
		return found, err
	}
}

// postPing: https://spec.matrix.org/v1.19/application-service-api/#post_matrixclientv1appserviceappserviceidping
func (a *api) postPing(r *request) (any, error) {
	if r.service.Registration.ID != r.PathValue("serviceID") {
		return nil, matrix.Forbidden("This is not the token of that application service")
	}
	var in struct {
		TxnID string `json:"transaction_id"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if a.Ping == nil || r.service.Registration.URL == "" {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeURLNotSet, "The application service has no url")
	}
	ms, err := a.Ping(r.Context(), r.service, in.TxnID)
	return map[string]int64{"duration_ms": ms}, err
}
