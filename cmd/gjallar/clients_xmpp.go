package main

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// xmppClient is a connection of someone on XMPP, without TLS: for a server on
// loopback only.
type xmppClient struct {
	conn    net.Conn
	dec     *xml.Decoder
	stanzas chan xmppStanza // closed when the connection ends
}

// xmppStanza is as much of a stanza as a measurement looks at.
type xmppStanza struct {
	XMLName xml.Name
	Type    string `xml:"type,attr"`
	From    string `xml:"from,attr"`
	ID      string `xml:"id,attr"`
	Body    string `xml:"body"`
	X       struct {
		Status []struct {
			Code string `xml:"code,attr"`
		} `xml:"status"`
	} `xml:"http://jabber.org/protocol/muc#user x"`
	Delay *struct{} `xml:"urn:xmpp:delay delay"`
	at    time.Time
}

// dialXMPP logs in as user@domain.
func dialXMPP(ctx context.Context, addr, user, domain, password string) (*xmppClient, error) {
	conn, err := dialRaw(ctx, addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	c := &xmppClient{conn: conn, stanzas: make(chan xmppStanza, 100_000)}
	if err := c.login(user, domain, password); err != nil {
		conn.Close()
		return nil, fmt.Errorf("log in %s@%s: %w", user, domain, err)
	}
	conn.SetDeadline(time.Time{})
	go c.read()
	return c, nil
}

func (c *xmppClient) login(user, domain, password string) error {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	if err := c.open(domain); err != nil {
		return err
	}
	if err := c.send(`<auth xmlns="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">` + plain + `</auth>`); err != nil {
		return err
	}
	if s, err := c.next(); err != nil || s.XMLName.Local != "success" {
		return errors.Join(err, fmt.Errorf("the server answers <%s>", s.XMLName.Local))
	}
	if err := c.open(domain); err != nil {
		return err
	}
	if err := c.send(`<iq type="set" id="bind"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq><presence/>`); err != nil {
		return err
	}
	for {
		s, err := c.next()
		if err != nil || s.ID == "bind" {
			return err
		}
	}
}

// open begins a stream and reads its features.
func (c *xmppClient) open(domain string) error {
	if err := c.send(`<stream:stream xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams" version="1.0" to="` + domain + `">`); err != nil {
		return err
	}
	c.dec = xml.NewDecoder(c.conn)
	for {
		tok, err := c.dec.Token()
		if err != nil {
			return err
		}
		if start, ok := tok.(xml.StartElement); ok && start.Name.Local == "features" {
			return c.dec.Skip()
		}
	}
}

func (c *xmppClient) next() (s xmppStanza, err error) {
	for {
		tok, err := c.dec.Token()
		if err != nil {
			return s, err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			err := c.dec.DecodeElement(&s, &t)
			s.at = time.Now()
			return s, err
		case xml.EndElement:
			return s, io.EOF
		}
	}
}

func (c *xmppClient) read() {
	defer close(c.stanzas)
	for {
		s, err := c.next()
		if err != nil {
			return
		}
		c.stanzas <- s
	}
}

func (c *xmppClient) send(text string) error {
	_, err := io.WriteString(c.conn, text)
	return err
}

// wait returns the next stanza for which match holds; those before it are dropped.
func (c *xmppClient) wait(ctx context.Context, match func(xmppStanza) bool) (xmppStanza, error) {
	for {
		select {
		case s, ok := <-c.stanzas:
			if !ok {
				return s, errors.New("the connection has ended")
			}
			if match(s) {
				return s, nil
			}
		case <-ctx.Done():
			return xmppStanza{}, ctx.Err()
		}
	}
}

// join enters a MUC and, if that made it, opens it.
func (c *xmppClient) join(ctx context.Context, muc, nick string) error {
	if err := c.send(`<presence to="` + muc + `/` + nick + `"><x xmlns="http://jabber.org/protocol/muc"><history maxstanzas="0"/></x></presence>`); err != nil {
		return err
	}
	made := false
	_, err := c.wait(ctx, func(s xmppStanza) bool {
		self := false
		for _, st := range s.X.Status {
			self = self || st.Code == "110"
			made = made || st.Code == "201"
		}
		return self
	})
	if err != nil || !made {
		return err
	}
	return c.send(`<iq type="set" id="open" to="` + muc + `"><query xmlns="http://jabber.org/protocol/muc#owner"><x xmlns="jabber:x:data" type="submit"/></query></iq>`)
}

// say sends a text, which must not need escaping, to a MUC.
func (c *xmppClient) say(muc, text string) error {
	return c.send(`<message type="groupchat" to="` + muc + `" id="` + text + `"><body>` + text + `</body></message>`)
}

func (c *xmppClient) close() { c.conn.Close() }
