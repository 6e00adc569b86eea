package clientapi

import "slices"

// otherRoutes are those of all that is not accounts, rooms and sync.
func (a *api) otherRoutes() []route {
	return slices.Concat(a.keyRoutes(), a.toDeviceRoutes(), a.presenceRoutes(), a.pushRoutes(), a.mediaRoutes())
}
