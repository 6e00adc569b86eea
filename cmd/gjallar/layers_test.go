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
	"backends/richtext":          {},
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
	"homeserver/accounts":        {"homeserver/matrix", "homeserver/sqldb", "homeserver/store"},
	"homeserver/asapi":           {"homeserver/matrix", "homeserver/canonicaljson", "homeserver/sqldb", "homeserver/store", "homeserver/streams"},
	"appservice":                 {"appservice/", "homeserver/matrix"},
	"plugins":                    {"plugins/", "backends/"},
	"plugins/wire":               {"backends", "backends/richtext"},
	"puppeting/html":             {"backends/richtext"},
	"puppeting":                  {"puppeting/", "appservice/", "backends/", "homeserver/matrix", "homeserver/sqldb"},
	"cmd":                        {"cmd/", "config", "homeserver/", "appservice/", "backends/", "plugins/", "puppeting/"},
}

// TestImportsPointOneWay holds the table in docs/architecture.md against the code.
// Tests may use more (a real server, a real peer), but nothing of the homeserver
// is tested with the bridge.
func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string

			TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		folder, allowed := rule(strings.TrimPrefix(p.ImportPath, module))
		used[folder] = true
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module)
			if ours && !slices.ContainsFunc(allowed, func(a string) bool {
				return imp == strings.TrimSuffix(a, "/") || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a)
			}) {
				t.Errorf("%s imports %s; packages of %s may import only %q", p.ImportPath, imp, folder, allowed)
			}
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if imp, ours := strings.CutPrefix(imp, module); ours && strings.HasPrefix(folder, "homeserver") && !strings.HasPrefix(imp, "homeserver") {
				t.Errorf("the tests of %s import %s", p.ImportPath, imp)
			}
		}
	}
	for folder := range mayImport {
		if !used[folder] {
			t.Errorf("no package goes by the rule of %s", folder)
		}
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
