package clientapi

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0.5, 2)
		for i := range 2 {
			if err := l.allow("a"); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
		e, ok := errors.AsType[*matrix.Error](l.allow("a"))
		if !ok || e.Code != matrix.CodeLimitExceeded || e.Extra["retry_after_ms"] != int64(2001) || retryAfter(e) != "3" {
			t.Fatalf("the third request in a moment: %v", e)
		}
		if err := l.allow("b"); err != nil {
			t.Errorf("another key: %v", err)
		}
		time.Sleep(2001 * time.Millisecond)
		if err := l.allow("a"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	})
}

func TestLimiterForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 1)
		for i := range maxBuckets {
			if err := l.allow(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		if err := l.allow("one more"); err != nil || len(l.buckets) != 1 {
			t.Errorf("%d buckets, %v", len(l.buckets), err)
		}
	})
}
