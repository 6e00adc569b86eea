package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
)

func TestTheMemoryTransportBehavesLikeASocket(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 3*streamAbove)
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /echo/{id}", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Id", r.PathValue("id"))
		w.WriteHeader(http.StatusCreated)
		w.Write(b)
		w.Header().Set("X-Late", "ignored")
	})
	mux.HandleFunc("GET /big", func(w http.ResponseWriter, r *http.Request) { w.Write(big) })
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("x") })
	mux.HandleFunc("GET /wait", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	client := &http.Client{Transport: &handlerTransport{mux}}

	t.Run("a small answer comes whole", func(t *testing.T) {
		req, _ := http.NewRequest("PUT", "http://memory/echo/a%2Fb", strings.NewReader("hello"))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 201 || string(b) != "hello" || resp.ContentLength != 5 || resp.Header.Get("X-Id") != "a/b" || resp.Header.Get("X-Late") != "" {
			t.Errorf("%d %q %d %v", resp.StatusCode, b, resp.ContentLength, resp.Header)
		}
	})
	t.Run("a large answer is streamed", func(t *testing.T) {
		resp, err := client.Get("http://memory/big")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(b, big) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
	t.Run("a large answer may be left unread", func(t *testing.T) {
		resp, err := client.Get("http://memory/big")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	})
	t.Run("a panic is an error", func(t *testing.T) {
		if _, err := client.Get("http://memory/panic"); err == nil || !strings.Contains(err.Error(), "panicked") {
			t.Error(err)
		}
	})
	t.Run("a request ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://memory/wait", nil)
		if _, err := client.Do(req); err == nil {
			t.Error("no error")
		}
	})
}

func BenchmarkMemoryTransport(b *testing.B) {
	client := &http.Client{Transport: &handlerTransport{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })}}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Get("http://memory/")
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func TestInformationalResponsesPassThroughMemory(t *testing.T) {
	var got []int
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { got = append(got, code); return nil }}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProcessing)
		w.WriteHeader(http.StatusTeapot)
	})
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://inside.invalid/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&handlerTransport{handler}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(got) != 1 || got[0] != http.StatusProcessing || resp.StatusCode != http.StatusTeapot {
		t.Errorf("informational %v, status %d", got, resp.StatusCode)
	}
}
