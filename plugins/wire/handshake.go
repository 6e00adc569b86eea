package wire

import goplugin "github.com/hashicorp/go-plugin"

// Versions of the protocol. A host speaks the newest and the one before.
//
//	1  2026-11-24  the first
const Version = 1

// PluginName is the name under which a plugin serves the Backend service.
const PluginName = "backend"

// Handshake keeps people from running a plugin by hand and hosts from running
// what is no plugin. It is no secret.
var Handshake = goplugin.HandshakeConfig{
	ProtocolVersion:  Version,
	MagicCookieKey:   "GJALLAR_PLUGIN",
	MagicCookieValue: "6f0b7c52-backend",
}

// LogLevelVariable names the environment variable with the least level that the
// host wants to have logged, as slog writes it.
const LogLevelVariable = "GJALLAR_PLUGIN_LOG_LEVEL"
