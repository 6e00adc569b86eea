package main

import (
	"os"
	"strings"
	"testing"
)

func TestTheSigningKeyIsMadeOnceAndKept(t *testing.T) {
	path := t.TempDir()
	d, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	key, id, err := d.signingKey()
	if err != nil || !strings.HasPrefix(id, "ed25519:a_") {
		t.Fatal(id, err)
	}
	if _, err := openDataDir(path); err == nil {
		t.Error("the folder was opened twice")
	}
	d.Close()
	d, err = openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if again, id2, err := d.signingKey(); err != nil || id2 != id || !again.Equal(key) {
		t.Errorf("another key: %s, %v", id2, err)
	}
	if info, err := os.Stat(d.file("signing.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	os.WriteFile(d.file("signing.key"), []byte("ed25519 x !!"), 0o600)
	if _, _, err := d.signingKey(); err == nil {
		t.Error("a damaged key was taken")
	}
}
