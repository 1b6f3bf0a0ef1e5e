// The certified `oidc-provider` as the tests' OpenID provider, on a loopback port of the system's choice.
//
// Usage: node provider.mjs CONFIG.json
//   { "users": { "alice": { "email", "name", "groups": [] } }, "gateway": { "client_id", "client_secret" },
//     "cli": { "client_id" } }
// Prints one JSON line, {"issuer": "http://127.0.0.1:PORT"}, when it listens. Ends when its standard input does,
// so that it never outlives the test that started it.
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { Provider, errors } from 'oidc-provider';

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));

const server = createServer((request, response) => callback(request, response));
let callback = (_request, response) => response.writeHead(503).end();

server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: config.gateway.client_id,
        client_secret: config.gateway.client_secret,
        token_endpoint_auth_method: config.gateway.client_secret ? 'client_secret_basic' : 'none',
        grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
        response_types: [],
        redirect_uris: [],
      },
      {
        client_id: config.cli.client_id,
        token_endpoint_auth_method: 'none',
        application_type: 'native',
        grant_types: ['authorization_code'],
        response_types: ['code'],
        // RFC 8252 section 7.3: the port of a loopback redirect is the client's choice.
        redirect_uris: config.cli.redirect_uris ?? [
          'http://127.0.0.1/callback', 'http://127.0.0.1/', 'http://127.0.0.1',
        ],
      },
    ],
    features: { deviceFlow: { enabled: true } },
    pkce: { required: () => true, methods: ['S256'] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'], groups: ['groups'] },
    scopes: ['openid', 'offline_access', 'email', 'profile', 'groups'],
    // The claims go into the ID token itself, as most providers do.
    conformIdTokenClaims: false,
    findAccount: (_context, id) => {
      const user = config.users[id];
      if (user === undefined) throw new errors.AccessDenied('no such user');
      return {
        accountId: id,
        claims: () => ({ sub: id, email: user.email, email_verified: true, name: user.name, groups: user.groups }),
      };
    },
    ttl: { DeviceCode: 600, Interaction: 600, Session: 3600, Grant: 3600, IdToken: 3600, AccessToken: 3600 },
  });
  callback = provider.callback();
  console.log(JSON.stringify({ issuer }));
});

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
