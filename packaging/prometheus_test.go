package packaging_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// patience is how long the slowest machine may take.
const patience = 2 * time.Minute

// TestDashboardOnPrometheus: a Prometheus that scrapes a flatd has something to
// show for each query of the dashboard, those for its menus among them.
func TestDashboardOnPrometheus(t *testing.T) {
	if testing.Short() {
		t.Skip("loads programs into the kernel")
	}
	client, server := testbed.Pair(t)
	startFlatd(t, client)
	p := startPrometheus(t, client)
	queries := append(dashboardQueries(t), dashboardMenus(t)...)
	for deadline := time.Now().Add(patience); len(queries) > 0; {
		// A rate takes two scrapes, and something that comes between them.
		exchange(t, client, server)
		queries = slices.DeleteFunc(queries, p.has)
		if time.Now().After(deadline) {
			t.Fatalf("Prometheus has nothing for\n%s\nIt said: %s", strings.Join(queries, "\n"), readFile(t, p.log))
		}
	}
}

// metricsSocket is flatd-metrics.socket's, in a namespace where it is free.
const metricsSocket = "127.0.0.1:13528"

// startFlatd has flatd measure a host, and hands it the socket for its metrics as
// systemd does. What is answered at once is counted, but not reported.
func startFlatd(t *testing.T, h *testbed.Host) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "flatd.toml")
	text := fmt.Sprintf("interfaces = [\"eth0\"]\npin_path = %q\nsocket = %q\n[filter]\nmin_duration = \"500ms\"\n[outputs.journald]\nenabled = false\n[outputs.stdout]\nenabled = true\n",
		filepath.Join(testbed.BPFFS(t), "flatd"), filepath.Join(dir, "sock"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	listener := h.Listen(t, metricsSocket)
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	flatd := h.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=metrics exec "$@"`, "sh", testbed.Build(t, "flatd", ""), "--config", config)
	flatd.ExtraFiles = []*os.File{socket}
	stderr, err := flatd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	run(t, flatd)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "flatd is ready") {
			go func() {
				for lines.Scan() {
				}
			}()
			return
		}
	}
	t.Fatal("flatd ended before it was ready")
}

// run starts a program that is ended with the test.
func run(t *testing.T, command *exec.Cmd) {
	t.Helper()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		_ = command.Wait()
	})
}

// prometheus is one at work in a namespace.
type prometheus struct {
	t      *testing.T
	client http.Client
	log    string // a file
}

func startPrometheus(t *testing.T, h *testbed.Host) *prometheus {
	t.Helper()
	testbed.Tool(t, "prometheus")
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs: [{job_name: flatd, static_configs: [{targets: [%q]}]}]\n", metricsSocket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{t: t, log: filepath.Join(dir, "log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command := h.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090", "--log.level=warn")
	command.Stderr = log
	run(t, command)
	p.client.Transport = &http.Transport{DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		h.Do(func() { conn, err = net.Dial(network, address) })
		return conn, err
	}}
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// variables are the dashboard's when all is chosen, and Grafana's own.
var variables = strings.NewReplacer("$instance", ".*", "$interface", ".*", "$side", ".*", "$__rate_interval", "1m", "$__range", "3h")

// has reports whether a query has a number for an answer. One that is no query
// fails the test, and is not to be asked again.
func (p *prometheus) has(query string) bool {
	answer, err := p.client.Get("http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(variables.Replace(query)))
	if err != nil {
		return false // it is not up yet
	}
	defer answer.Body.Close()
	var is struct {
		Error string
		Data  struct{ Result []struct{ Value [2]any } }
	}
	if json.NewDecoder(answer.Body).Decode(&is) != nil {
		return false
	}
	if answer.StatusCode == http.StatusBadRequest {
		p.t.Errorf("%s: %s", query, is.Error)
		return true
	}
	return slices.ContainsFunc(is.Data.Result, func(r struct{ Value [2]any }) bool { return r.Value[1] != "NaN" })
}

// dashboardMenus are queries that have something if the menus of the dashboard do.
func dashboardMenus(t *testing.T) (queries []string) {
	t.Helper()
	menus := regexp.MustCompile(`"label_values\((.*), (\w+)\)"`).FindAllStringSubmatch(readFile(t, "grafana-dashboard.json"), -1)
	if len(menus) == 0 {
		t.Fatal("the dashboard has no menus")
	}
	for _, m := range menus {
		queries = append(queries, fmt.Sprintf("count by (%s) (%s)", m[2], strings.ReplaceAll(m[1], `\"`, `"`)))
	}
	return queries
}

// exchange has a host ask another in several ways: an answer, a refusal, a DNS
// server that is not there, an echo.
func exchange(t *testing.T, from, to *testbed.Host) {
	t.Helper()
	listener := to.Listen(t, net.JoinHostPort(to.V4, "0"))
	defer listener.Close()
	for _, address := range []string{listener.Addr().String(), net.JoinHostPort(to.V6, "9")} {
		from.Do(func() {
			if conn, err := net.Dial("tcp", address); err == nil {
				conn.Close()
			}
		})
	}
	_ = from.Command(testbed.Tool(t, "dig"), "+tries=1", "+time=1", "@"+to.V4, "example.test").Run() // it fails, as it should
	if out, err := from.Command(testbed.Tool(t, "ping"), "-c", "1", "-W", "20", to.V4).CombinedOutput(); err != nil {
		t.Fatalf("ping: %v\n%s", err, out)
	}
}
