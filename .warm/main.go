package main
import (_ "modernc.org/sqlite"; _ "github.com/jackc/pgx/v5/stdlib"; _ "github.com/hashicorp/go-plugin"; _ "google.golang.org/grpc"; _ "maunium.net/go/mautrix"; _ "mellium.im/xmpp"; _ "net/http")
func main(){}
