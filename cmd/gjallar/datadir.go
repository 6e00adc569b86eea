package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// dataDir is the folder that holds what must outlive the process.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the folder if need be, and keeps a second Gjallar out of it.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(abs, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("data folder %s is in use by another gjallar", path)
	}
	return &dataDir{abs, lock}, nil
}

// Close lets others use the folder.
func (d *dataDir) Close() error { return d.lock.Close() }

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// signingKey returns the server's key and its ID ("ed25519:abc"), made at the
// first start. The file has the form that other homeservers use: "ed25519 ID SEED".
func (d *dataDir) signingKey() (ed25519.PrivateKey, string, error) {
	path := d.file("signing.key")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		seed := make([]byte, ed25519.SeedSize)
		rand.Read(seed)
		b = fmt.Appendf(nil, "ed25519 a_%s %s\n", rand.Text()[:6], base64.RawStdEncoding.EncodeToString(seed))
		err = writeDurably(path, b)
	}
	if err != nil {
		return nil, "", fmt.Errorf("signing key: %w", err)
	}
	f := strings.Fields(string(b))
	if len(f) != 3 || f[0] != "ed25519" {
		return nil, "", fmt.Errorf("signing key: %s does not have the form \"ed25519 ID SEED\"", path)
	}
	seed, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(f[2], "="))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, "", fmt.Errorf("signing key: %s: the seed is not base64 of %d bytes", path, ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), "ed25519:" + f[1], nil
}

// writeDurably makes a private file that is whole, or not there at all, after a crash.
func writeDurably(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
