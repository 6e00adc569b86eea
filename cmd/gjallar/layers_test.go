package main

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gjallar-im/gjallar/"

// mayImport says which folders of ours a folder's packages may import, the most
// specific folder counting. "…/" stands for all packages below.
var mayImport = map[string][]string{
	"config":                     {},
	"backends":                   {"backends/"},
	"homeserver":                 {"homeserver/"},
	"homeserver/matrix":          {},
	"homeserver/canonicaljson":   {},
	"homeserver/sqldb":           {},
	"homeserver/hstest/postgres": {},
	"homeserver/roomversion":     {"homeserver/matrix"},
	"homeserver/pdu":             {"homeserver/matrix", "homeserver/canonicaljson", "homeserver/roomversion"},
	"homeserver/eventauth":       {"homeserver/matrix", "homeserver/canonicaljson", "homeserver/roomversion", "homeserver/pdu"},
	"homeserver/stateres":        {"homeserver/matrix", "homeserver/canonicaljson", "homeserver/roomversion", "homeserver/pdu", "homeserver/eventauth"},
	"homeserver/streams":         {"homeserver/matrix"},
	"homeserver/store":           {"homeserver/matrix", "homeserver/roomversion", "homeserver/canonicaljson", "homeserver/pdu", "homeserver/sqldb"},
	"appservice":                 {"appservice/", "homeserver/matrix"},
	"plugins":                    {"plugins/", "backends/"},
	"puppeting":                  {"puppeting/", "appservice/", "backends/", "homeserver/matrix", "homeserver/sqldb"},
	"cmd":                        {"cmd/", "config", "homeserver/", "appservice/", "backends/", "plugins/", "puppeting/"},
}

// TestImportsPointOneWay holds the table in docs/architecture.md against the code.
// Tests may use more (a real server, a real peer), but never across the bridge:
// nothing of the homeserver is tested with the bridge, nor the other way.
func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		seen++
		folder, allowed := rule(strings.TrimPrefix(p.ImportPath, module))
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module)
			if ours && !slices.ContainsFunc(allowed, func(a string) bool {
				return imp == strings.TrimSuffix(a, "/") || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a)
			}) {
				t.Errorf("%s imports %s; packages of %s may import only %q", p.ImportPath, imp, folder, allowed)
			}
		}
	}
	if seen < 10 {
		t.Errorf("go list named only %d packages", seen)
	}
}

func rule(path string) (string, []string) {
	for folder := path; ; {
		if allowed, ok := mayImport[folder]; ok {
			return folder, allowed
		}
		i := strings.LastIndexByte(folder, '/')
		if i < 0 {
			return "(no folder of the design)", nil
		}
		folder = folder[:i]
	}
}
