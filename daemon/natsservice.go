package daemon

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/outputs"
)

// natsEndpoints are what flatd answers over NATS: the JSON that the control
// socket has at /v1/ and the name. Nothing here changes anything.
var natsEndpoints = []struct {
	name   string
	answer func(*Daemon, url.Values) (any, error)
}{
	{"status", func(d *Daemon, _ url.Values) (any, error) { return d.Status() }},
	{"summary", func(d *Daemon, _ url.Values) (any, error) {
		return json.RawMessage(d.control.AppendArray(nil, d.pipeline.Summaries())), nil
	}},
	{"histogram", func(d *Daemon, query url.Values) (any, error) {
		q, err := api.ParseHistogramQuery(query)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", outputs.ErrRequest, err)
		}
		return d.control.Histograms(q)
	}},
}

// serveNATS answers requests over NATS as c says, and no longer as before. It logs
// a failure, which holds up nothing else.
func (d *Daemon) serveNATS(c config.NATS) {
	service, err := d.openNATSService(c)
	if err != nil {
		d.refusedNATS(err)
	}
	d.mu.Lock()
	before := d.natsService
	d.natsService = service
	d.mu.Unlock()
	if before != nil {
		before.Close()
	}
}

// openNATSService returns nil if there is to be none.
func (d *Daemon) openNATSService(c config.NATS) (*outputs.NATSService, error) {
	if c.URL == "" || !c.Service {
		return nil, nil
	}
	o := outputs.ServiceOptions{NATS: d.natsOptions(c), Version: d.options.Version, Refused: d.refusedNATS}
	for _, e := range natsEndpoints {
		o.Endpoints = append(o.Endpoints, outputs.Endpoint{
			Name: e.name, Answer: func(query url.Values) (any, error) { return e.answer(d, query) },
		})
	}
	return outputs.NewNATSService(o)
}

func (d *Daemon) refusedNATS(err error) {
	d.log.Warn("the NATS server does not let flatd answer requests, continuing without; allow it to subscribe to $SRV.> and srv.flatd.>, or set `service = false`",
		"error", err)
}
