package matrix

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
)

// Error codes of the specification
// (https://spec.matrix.org/v1.19/client-server-api/#standard-error-response).
const (
	CodeForbidden               = "M_FORBIDDEN"
	CodeUnknownToken            = "M_UNKNOWN_TOKEN"
	CodeMissingToken            = "M_MISSING_TOKEN"
	CodeUserLocked              = "M_USER_LOCKED"
	CodeUserSuspended           = "M_USER_SUSPENDED"
	CodeUserDeactivated         = "M_USER_DEACTIVATED"
	CodeBadJSON                 = "M_BAD_JSON"
	CodeNotJSON                 = "M_NOT_JSON"
	CodeNotFound                = "M_NOT_FOUND"
	CodeLimitExceeded           = "M_LIMIT_EXCEEDED"
	CodeUnrecognized            = "M_UNRECOGNIZED"
	CodeUnknown                 = "M_UNKNOWN"
	CodeUnauthorized            = "M_UNAUTHORIZED"
	CodeUserInUse               = "M_USER_IN_USE"
	CodeInvalidUsername         = "M_INVALID_USERNAME"
	CodeRoomInUse               = "M_ROOM_IN_USE"
	CodeInvalidRoomState        = "M_INVALID_ROOM_STATE"
	CodeBadState                = "M_BAD_STATE"
	CodeUnsupportedRoomVersion  = "M_UNSUPPORTED_ROOM_VERSION"
	CodeIncompatibleRoomVersion = "M_INCOMPATIBLE_ROOM_VERSION"
	CodeMissingParam            = "M_MISSING_PARAM"
	CodeInvalidParam            = "M_INVALID_PARAM"
	CodeTooLarge                = "M_TOO_LARGE"
	CodeExclusive               = "M_EXCLUSIVE"
	CodeWeakPassword            = "M_WEAK_PASSWORD"
	CodeDuplicateAnnotation     = "M_DUPLICATE_ANNOTATION"
	CodeNotYetUploaded          = "M_NOT_YET_UPLOADED"
	CodeCannotOverwriteMedia    = "M_CANNOT_OVERWRITE_MEDIA"
	CodeGuestAccessForbidden    = "M_GUEST_ACCESS_FORBIDDEN"
	CodeURLNotSet               = "M_URL_NOT_SET"
	CodeBadStatus               = "M_BAD_STATUS"
	CodeConnectionFailed        = "M_CONNECTION_FAILED"
	CodeConnectionTimeout       = "M_CONNECTION_TIMEOUT"
	CodeUnableToAuthoriseJoin   = "M_UNABLE_TO_AUTHORISE_JOIN"
	CodeUnableToGrantJoin       = "M_UNABLE_TO_GRANT_JOIN"
	CodeUnknownDevice           = "M_UNKNOWN_DEVICE"
)

// Error is a refusal in the protocol's own form. It is the body of an error
// response and, as a Go error, what a package returns for the client to see.
type Error struct {
	Status  int            // HTTP status
	Code    string         // errcode
	Message string         // for people
	Extra   map[string]any // further keys of the body, such as retry_after_ms
}

// Errorf makes an Error.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Shorthands for the commonest refusals.
func Forbidden(format string, args ...any) *Error {
	return Errorf(http.StatusForbidden, CodeForbidden, format, args...)
}
func NotFound(format string, args ...any) *Error {
	return Errorf(http.StatusNotFound, CodeNotFound, format, args...)
}
func BadJSON(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeBadJSON, format, args...)
}
func InvalidParam(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeInvalidParam, format, args...)
}
func MissingParam(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeMissingParam, format, args...)
}

// With returns a copy of e whose body has one more key.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Extra = maps.Clone(e.Extra)
	if c.Extra == nil {
		c.Extra = map[string]any{}
	}
	c.Extra[key] = value
	return &c
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// MarshalJSON gives the standard error response.
func (e *Error) MarshalJSON() ([]byte, error) {
	body := map[string]any{}
	if e.Code != "" { // without one it is no error yet: the first answer of user-interactive authentication
		body["errcode"], body["error"] = e.Code, e.Message
	}
	maps.Copy(body, e.Extra)
	return json.Marshal(body)
}
