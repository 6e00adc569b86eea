package postgres

import (
	"testing"
)

func TestEachStartIsAFreshDatabase(t *testing.T) {
	for range 2 {
		if err := execSQL(t.Context(), Start(t), "CREATE TABLE t (x int)"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAClusterComesBackAfterAKill(t *testing.T) {
	c := New(t)
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if err := execSQL(t.Context(), c.DSN("postgres"), "CREATE TABLE t (x int); INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if err := execSQL(t.Context(), c.DSN("postgres"), "SELECT 1/count(*) FROM t"); err != nil {
		t.Errorf("the row is gone: %v", err)
	}
}
