package clientapi

import "strings"

// Route is an endpoint, for tests that go through all of them.
type Route struct{ Method, Path string }

// Routes returns all endpoints, with the path that the specification gives.
func Routes() (out []Route) {
	a := &api{Options: Options{SharedSecret: "secret"}}
	for _, group := range [][]route{a.accountRoutes(), a.roomRoutes(), a.ephemeralRoutes(), a.syncRoutes(), a.otherRoutes()} {
		for _, r := range group {
			path := r.path
			switch {
			case strings.HasPrefix(path, "/media/"):
				path = "/_matrix" + path
			case !strings.HasPrefix(path, "/.") && !strings.HasPrefix(path, "/_"):
				path = "/_matrix/client" + path
			}
			out = append(out, Route{r.method, path})
		}
	}
	return out
}
