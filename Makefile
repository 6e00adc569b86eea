# What the tests need besides Go; Debian's names. The race detector needs the C compiler.
PEERS = gcc libc6-dev ngircd inspircd prosody ejabberd postgresql irssi ii python3-slixmpp procps

.PHONY: build test peers check fuzz bench

build:
	CGO_ENABLED=0 go build -trimpath -o gjallar ./cmd/gjallar

# Everything, with the race detector, against the real peers.
test: peers check
	GJALLAR_REQUIRE_PEERS=1 go test -race -timeout 20m ./...

check:
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	go vet ./...

# Installs the peers that are missing. Services that Debian would start are not wanted.
peers:
	@missing=$$(for p in $(PEERS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
		$$sudo apt-get update -q && \
		$$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends $$missing; \
	fi

# A minute for each fuzz target.
fuzz:
	@for pkg in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$pkg | grep ^Fuzz); do echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime 1m $$pkg || exit 1; done; \
	done

bench:
	go test -run '^$$' -bench . -benchmem ./...
