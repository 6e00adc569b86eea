package roomversion

import (
	"reflect"
	"strconv"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// The versions that each rule is for, first to last, by the lists of changes at
// https://spec.matrix.org/v1.19/rooms/.
var rules = map[string][2]int{
	"EventRefsWithHashes": {1, 2},
	"StrictJSON":          {6, 12},
	"EnforceKeyValidity":  {5, 12},
	"DropOverByteLimit":   {11, 12},
	"AliasesAuth":         {1, 5},
	"RedactionAuth":       {1, 2},
	"NotificationsPL":     {6, 12},
	"Knock":               {7, 12},
	"Restricted":          {8, 12},
	"KnockRestricted":     {10, 12},
	"IntegerPowerLevels":  {10, 12},
	"FloatPowerLevels":    {1, 5},
	"ImplicitCreator":     {11, 12},
	"CreatorsInfinite":    {12, 12},
	"RoomIDIsCreateHash":  {12, 12},
	"RedactsInContent":    {11, 12},
	"KeepLegacyTopLevel":  {1, 10},
	"KeepAliases":         {1, 5},
	"KeepAllow":           {8, 12},
	"KeepAuthorisedVia":   {9, 12},
	"KeepAllOfCreate":     {11, 12},
	"KeepInvitePL":        {11, 12},
	"KeepSignedInvite":    {11, 12},
}

func TestEveryRuleOfEveryVersion(t *testing.T) {
	all := All()
	if len(all) != 12 {
		t.Fatalf("%d versions", len(all))
	}
	fields := 0
	for i, r := range all {
		n := i + 1
		if string(r.Version) != strconv.Itoa(n) {
			t.Errorf("version %s at place %d", r.Version, n)
		}
		for field, value := range reflect.ValueOf(*r).Fields() {
			if field.Type.Kind() != reflect.Bool {
				continue
			}
			fields++
			span, ok := rules[field.Name]
			if want := span[0] <= n && n <= span[1]; !ok || value.Bool() != want {
				t.Errorf("version %d: %s is %v; of which versions is it? %v", n, field.Name, value.Bool(), span)
			}
		}
		idFormat, stateRes, depth := IDURLBase64, StateResV2, int64(1<<53-1)
		switch {
		case n <= 2:
			idFormat = IDInEvent
		case n == 3:
			idFormat = IDBase64
		}
		switch n {
		case 1:
			stateRes = StateResV1
		case 12:
			stateRes = StateResV21
		}
		if n <= 5 {
			depth = 1<<63 - 1
		}
		if r.IDFormat != idFormat || r.StateRes != stateRes || r.MaxDepth() != depth {
			t.Errorf("version %d: %+v, depth %d", n, r, r.MaxDepth())
		}
	}
	if fields != 12*len(rules) {
		t.Errorf("%d rules are tested of %d", len(rules), fields/12)
	}
}

func TestGet(t *testing.T) {
	for _, want := range All() {
		if got, ok := Get(want.Version); !ok || got != want {
			t.Errorf("version %s: %v, %v", want.Version, got, ok)
		}
	}
	for _, v := range []matrix.RoomVersion{"", "0", "13", "01", "1.0", " 1", "org.matrix.hydra.11"} {
		if r, ok := Get(v); ok || r != nil {
			t.Errorf("version %q is known", v)
		}
	}
	if _, ok := Get(Default); !ok {
		t.Error("the default version is not known")
	}
}

func TestAllIsTheCallers(t *testing.T) {
	All()[0] = nil
	if All()[0] == nil {
		t.Error("a caller can change the list")
	}
}
