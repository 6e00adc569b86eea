package inspircd

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
)

func TestTheServerWelcomes(t *testing.T) {
	conn, err := net.Dial("tcp", Start(t).Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "NICK alice\r\nUSER a 0 * :A\r\n")
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if strings.Contains(lines.Text(), " 001 alice ") {
			return
		}
	}
	t.Error("no 001")
}
